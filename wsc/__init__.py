"""wsc: compile JAX programs onto a wafer-scale chip, run them, and account for what the wafer does."""

from wsc import models
from wsc.bound import Bound, lower_bound
from wsc.compile import compile
from wsc.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DownloadError,
    FitError,
    TraceError,
    UnsupportedError,
    WscError,
)
from wsc.machine.wafer import WAFERS, WSE2, WSE3, Wafer
from wsc.plan_report import Plan, plan_report
from wsc.program import Program
from wsc.runtime.executable import Executable
from wsc.runtime.generate import LanguageModel
from wsc.runtime.simulation import Simulation
from wsc.runtime.telemetry import Telemetry
from wsc.sensitivity import sensitivity, sweep
from wsc.speculative import Speculative, speculative
from wsc.streaming import Streamed, streamed
from wsc.validate import validate

__all__ = [
    "WAFERS",
    "WSE2",
    "WSE3",
    "ArgumentError",
    "Bound",
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "Executable",
    "FitError",
    "LanguageModel",
    "Plan",
    "Program",
    "Simulation",
    "Speculative",
    "Streamed",
    "Telemetry",
    "TraceError",
    "UnsupportedError",
    "Wafer",
    "WscError",
    "compile",
    "lower_bound",
    "models",
    "plan_report",
    "sensitivity",
    "speculative",
    "streamed",
    "sweep",
    "validate",
]
