"""What the library tells of its work; the server turns it into metrics."""

from __future__ import annotations

from collections.abc import Sequence


class Observer:
    """Does nothing; override what you need. Methods run on the event loop and must be quick."""

    def on_model_loaded(self, name: str, seconds: float) -> None:
        """A model was loaded and warmed up."""

    def on_batch(
        self,
        pair: str,
        waits: Sequence[float],
        tokens: int,
        padded_tokens: int,
        target_tokens: int,
        seconds: float,
    ) -> None:
        """A batch was translated.

        Args:
            waits: seconds that each sentence had waited.
            tokens: source tokens; padded_tokens: longest x count.
            seconds: time in the model.
        """

    def on_batch_failure(self, pair: str, size: int) -> None:
        """The engine failed on a batch of ``size`` sentences."""

    def on_comment(self, direction: str, outcome: str) -> None:
        """A comment was answered: translated, cached, failed, or the reason why it was skipped."""

    def on_unfit(self, pair: str, problem: str, recovered: bool) -> None:
        """The guard refused an output; ``recovered`` tells whether the second try was fit."""
