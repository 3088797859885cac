"""Updates in progress: of an optimizer, of one within another, by a gradient scaler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Update:
    begin: int
    opt: int
    by_scaler: bool
    begins: int  # backwards begun in this step before it
    has_backward: bool  # since the update before


class Updates:
    """The open ones, the outermost first. An update that raises has no end, and that shows only later."""

    def __init__(self) -> None:
        self.suspect_at = 0  # begin of a fetch while one was open: did it raise, or is this its closure's fetch?
        self._open: list[Update] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def clear(self) -> None:
        self.suspect_at = 0
        self._open.clear()

    def begin(self, update: Update) -> None:
        self._open.append(update)

    def end(self, opt: int) -> Update | None:
        """Of an optimizer's update; None where its begin was not seen."""
        return self._pop([update.opt == opt and not update.by_scaler for update in self._open])

    def end_scaler(self) -> Update | None:
        return self._pop([update.by_scaler for update in self._open])

    def is_no_closure(self) -> bool:
        """Whether the update came after a backward, so that another one within it is not its closure's."""
        return bool(self._open) and self._open[0].has_backward

    def is_within_scaler(self) -> bool:
        return bool(self._open) and self._open[-1].by_scaler

    def is_tried_again(self, opt: int, begins: int) -> bool:
        """Whether *opt*'s last update raised: it begins again, and a backward came between."""
        last = self._open[-1] if self._open else None
        return last is not None and (
            last.opt == opt and last.has_backward and begins > last.begins and not last.by_scaler
        )

    def _pop(self, fits: list[bool]) -> Update | None:
        if True not in fits:
            return None
        self.suspect_at = 0
        index = len(fits) - 1 - fits[::-1].index(True)
        update = self._open[index]
        del self._open[index:]
        return update
