"""How an image is shown: as it stands, or mirrored, moved, with a trigger on it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Record

TriggerName = Literal["corner", "grid", "blended", "sinusoid"]
"""Known backdoor triggers: see compute.stamps."""


class View(Record):
    """One way an image is shown: mirrored left to right or not, then moved down and right by so many pixels.

    Pixels are those of the backbone's input; what moves in repeats the edge. A trigger is put on what is then seen.
    """

    flip: bool = False
    down: int = 0
    right: int = 0
    trigger: Annotated[TriggerName | None, InDigest.IF_CHANGED] = None


class Augmentation(Record):
    """Views that training shows: every example is seen in one of them, drawn afresh and evenly each epoch.

    flip   mirrored images too
    shift  images moved by so many pixels of the input up, down, left and right too
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=256)] = 0

    @model_validator(mode="after")
    def _shows_something_new(self) -> Self:
        if not self.flip and not self.shift:
            raise ValueError("augmentation needs flip: true or a shift above 0; without either remove it")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """All views, the image as it stands first."""
        s = self.shift
        moves = ((0, 0), (-s, 0), (s, 0), (0, -s), (0, s)) if s else ((0, 0),)
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(flip=flip, down=down, right=right) for flip in mirrored for down, right in moves)


def square_side(side: int) -> int:
    """Of the white square of Gu et al. 2017 (arXiv 1708.06733) on images of this side, in pixels: 3 of 32."""
    return max(3, side * 3 // 32)
