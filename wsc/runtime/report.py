"""Reports: the same figures as rich tables in a terminal and as HTML in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from wsc.tables import Printed

if TYPE_CHECKING:
    from wsc.machine.baselines import Serving
    from wsc.runtime.executable import Executable


class Report(Printed):
    """What a program costs on its wafer, by cause and by stage. Print it, or show it in a notebook."""

    def __init__(self, executable: Executable):
        self.executable = executable

    def __rich__(self) -> Group:
        tables = [self._summary(), self._causes(), self._stages(), self._memory()]
        others = self.executable.alternatives()
        return Group(*tables, *([self._alternatives(others)] if len(others) > 1 else []))

    def _summary(self) -> Table:
        program, t = self.executable.program, self.executable.telemetry
        figures = t.as_dict()
        wafer = program.wafer
        table = Table(title=f"Modelled: {self.executable.conditions}")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_column("unit")
        rows = [
            ("time of one run", figures["seconds"] * 1e6, "us"),
            ("tokens (or runs) per second, one user", figures["tokens_per_second"], "1/s"),
            ("cycles of one run", figures["cycles"], "cycles"),
            ("the same, if no message shared a link", figures["cycles_ideal"], "cycles"),
            (f"cycles of one layer ({program.layer.name})", figures["cycles_per_layer"], "cycles"),
            ("PEs used", figures["pes"], f"of {wafer.pes * program.wafers:,}"),
            ("SRAM bandwidth used", 100 * figures["sram_utilization"], "% of peak"),
            ("over the fabric", figures["fabric_bytes"] / 1e6, "MB"),
            ("energy of one run, idle power included", figures["energy_joules"] * 1e3, "mJ"),
            ("energy of cores and fabric alone", figures["dynamic_energy_joules"] * 1e3, "mJ"),
        ]
        for name, value, unit in rows:
            table.add_row(name, f"{value:,.0f}" if value >= 1000 else f"{value:,.4g}", unit)
        return table

    def _causes(self) -> Table:
        figures = self.executable.telemetry.as_dict()
        table = Table(title="Where the time goes (critical path)")
        for name, justify in (("cause", "left"), ("cycles", "right"), ("share", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        causes = {
            "fabric latency: hops, ramps, relays, arrivals": figures["cycles_latency"],
            "fabric bandwidth: wavelets one after the other": figures["cycles_serial"],
            "arithmetic in the PEs": figures["cycles_arithmetic"],
            "instruction issue and loops in the PEs": figures["cycles_overhead"],
            "host and wafer links": figures["cycles_links"],
        }
        whole = sum(causes.values()) or 1.0
        for cause, cycles in causes.items():
            table.add_row(cause, f"{cycles:,.0f}", f"{100 * cycles / whole:.1f} %")
        return table

    def _stages(self) -> Table:
        program, t = self.executable.program, self.executable.telemetry
        table = Table(title="Stages")
        for name in ("stage", "region", "PEs", "bytes a PE", "cycles", "fabric", "flops"):
            table.add_column(name, justify="left" if name in ("stage", "region") else "right")
        shown: dict[int, int] = {}
        for stage in program.stages:
            shown[stage.template] = shown.get(stage.template, 0) + 1
        seen: set[int] = set()
        for i, stage in enumerate(program.stages):
            if stage.template in seen:
                continue
            seen.add(stage.template)
            cost = t.stages[i]
            times = f" (and {shown[stage.template] - 1} alike)" if shown[stage.template] > 1 else ""
            fabric = (cost.latency + cost.serial) / cost.cycles if cost.cycles else 0.0
            table.add_row(
                stage.name + times,
                str(stage.region),
                f"{stage.region.pes:,}",
                f"{stage.used_bytes:,}",
                f"{cost.cycles:,.0f}",
                f"{100 * fabric:.0f} %",
                f"{cost.flops:,.3g}",
            )
        return table

    def _memory(self) -> Table:
        m = self.executable.memory_analysis()
        table = Table(title="SRAM, all PEs")
        for name, justify in (("what", "left"), ("bytes", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        rows = {
            "parameters": m.weight_bytes,
            "parameters x stated replication": m.replicated_bytes,
            "padding of their tiles": m.padding_bytes,
            "weights stored (the two above)": m.stored_weight_bytes,
            "KV cache and other state": m.state_bytes,
            "buffers": m.temp_size_in_bytes,
            "code": m.generated_code_size_in_bytes,
            f"fullest PE (of {m.sram_bytes_per_pe:,})": m.fullest_pe_bytes,
        }
        for what, nbytes in rows.items():
            table.add_row(what, f"{nbytes:,}")
        return table

    def _alternatives(self, rows: tuple[Serving, ...]) -> Table:
        program = self.executable.program
        table = Table(
            title=f"What else could run it, modelled: {program.conditions}",
            caption="rated power, whole system for the wafer, chips alone for GPUs; rents assumed; an LPU holds 8 bits",
        )
        table.add_column("hardware")
        for name in ("chips", "tokens/s a user", "tokens/s", "tokens/J", "$/M tokens"):
            table.add_column(name, justify="right")
        for r in rows:
            cells = (
                r.tokens_per_second_per_user,
                r.tokens_per_second,
                r.tokens_per_joule,
                r.dollars_per_million_tokens,
            )
            table.add_row(r.name, f"{r.chips:,.0f}", *(f"{c:,.0f}" if c >= 100 else f"{c:,.3g}" for c in cells))
        return table
