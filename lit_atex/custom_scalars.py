"""One TensorBoard page ("Custom Scalars") with exposure, competence, mismatch and reward over the same steps.

It knows tags, not what they mean.
"""

from __future__ import annotations

import lightning.pytorch as pl

from lit_atex.metrics_csv import tensorboard

TAGS = {
    "exposure": "exposure/ratio",
    "competence": "competence/running",
    "mismatch": "mismatch/forward_kl",
    "reward": "exposure/reward",
}
"""A tag that a run never logs leaves its chart empty."""


def layout() -> dict[str, dict[str, list[str | list[str]]]]:
    """What `SummaryWriter.add_custom_scalars` takes: groups of charts. Tags are regular expressions there."""
    groups = {
        "exposure, competence, mismatch, reward": {"all four over the same axis": list(TAGS.values())},
        "each alone": {name: [tag] for name, tag in TAGS.items()},
        "collapse": {
            "ratio to the start": ["collapse/.*_ratio"],
            "change from the start": ["collapse/.*_change"],
            "fall from the best": ["collapse/.*_fall"],
        },
    }
    return {
        group: {title: ["Multiline", [f"^{tag}$" for tag in tags]] for title, tags in charts.items()}
        for group, charts in groups.items()
    }


class CustomScalars(pl.Callback):
    """Lays out the page when training starts."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout beside the numbers."""
        if trainer.is_global_zero and (writer := tensorboard(trainer)) is not None:
            writer.add_custom_scalars(layout())
