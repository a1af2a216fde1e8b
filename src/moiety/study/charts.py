"""The pictures of a study."""

from __future__ import annotations

from matplotlib.ticker import PercentFormatter

from moiety.evaluate import figures
from moiety.evaluate.figures import Theme
from moiety.study.paper import StudyReport, StudyRow


def draw(report: StudyReport, *, dark: bool) -> dict[str, bytes]:
    """Every chart the study has numbers for: name to PNG."""
    theme = figures.DARK if dark else figures.LIGHT
    pictures = {"difference": _difference(report, theme)}
    if any(row.gap_closed is not None for row in report.rows):
        pictures["gap-closed"] = _gap_closed(report, theme)
    if report.removal:
        prices = {owner: (price.value, price.interval) for owner, price in report.removal.items()}
        label = "bits per byte above the anchor, on the text of who left"
        pictures["removal"] = figures.price_bars(prices, label, theme)
    if sum(row.cost is not None for row in report.rows) > 1:
        pictures["inference"] = _against_cost(report, "inference_flops_per_token", theme)
        pictures["training"] = _against_cost(report, "training_flops", theme)
    return pictures
