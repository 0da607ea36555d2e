"""`python -m wsc.lowering.rules` prints what becomes of every primitive of JAX: the text of `docs/primitives.md`."""

from wsc.lowering.rules.coverage import table

if __name__ == "__main__":
    print(table(), end="")
