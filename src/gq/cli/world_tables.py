"""The tables of `gq params tdmpc2`."""

from typing import TYPE_CHECKING, Any

from gq.cli.output import Output

if TYPE_CHECKING:
    from gq.costs import WorldParamsReport
    from gq.envs.tasks import Task


def world_tables(output: Output, reports: list["WorldParamsReport"], task: "Task") -> Any:
    """Return the counts of each network and the costs as two tables."""
    from rich.console import Group

    has_termination = any(report.parameters_termination for report in reports)
    names = ["encoder", "dynamics", "reward", "policy", "q", *(["termination"] if has_termination else [])]
    counts, costs = [], []
    for r in reports:
        networks = [f"{r.networks[name]:,}" for name in names]
        counts.append((r.size, f"{r.parameters:,}", f"{r.parameters_with_target:,}", *networks))
        costs.append(
            (
                r.size,
                f"{r.weights_bytes / 2**20:,.1f} MiB",
                f"{r.training_memory_bytes / 2**30:.2f} GiB",
                f"{r.replay_bytes / 2**30:.2f} GiB",
                f"{r.plan_multiply_adds / 1e9:,.1f} G",
                f"{r.original_plan_multiply_adds / 1e9:,.1f} G",
                f"{r.policy_multiply_adds / 1e6:,.2f} M",
                f"{r.update_multiply_adds / 1e9:,.1f} G",
            )
        )
    notes = [
        f"weights: all networks; memory: an update on {reports[0].batch_size} sequences; replay: at its largest;",
        "plan, original, policy, update: multiply-adds of a plan, of the original's, of acting without, of an update",
    ]
    if has_termination:
        notes.append("parameters and with target are without the termination network, as they are published")
    return Group(
        f"TD-MPC2 for {task.id} (observations of {task.observation_dim} numbers, actions of {task.action_dim})",
        output.table(["size", "parameters", "with target", *names], counts),
        output.table(["size", "weights", "memory", "replay", "plan", "original", "policy", "update"], costs),
        *notes,
    )
