"""Views of an image: unchanged, mirrored, shifted, or with a backdoor trigger."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from privacy_gate.documents import InDigest, Record

TriggerName = Literal["corner", "grid", "blended", "sinusoid"]
"""Known backdoor triggers; compute/images/stamps.py draws them."""


class View(Record):
    """One view of an image: mirrored left to right or not, then shifted down and right.

    Shifts are in pixels of the backbone's input. Pixels that enter the image repeat its edge. The
    trigger is stamped last.
    """

    flip: bool = False
    down: int = 0
    right: int = 0
    trigger: Annotated[TriggerName | None, InDigest.IF_CHANGED] = None


class Augmentation(Record):
    """Augmentation in training: each epoch draws one view for every example, uniformly and independently.

    flip   add mirrored images
    shift  add images shifted up, down, left and right by this many pixels of the input
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=256)] = 0

    @model_validator(mode="after")
    def _shows_something_new(self) -> Self:
        if not self.flip and not self.shift:
            raise ValueError("augmentation needs flip: true or a shift above 0: set one, or remove augmentation")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """All views; the unchanged image comes first."""
        s = self.shift
        moves = ((0, 0), (-s, 0), (s, 0), (0, -s), (0, s)) if s else ((0, 0),)
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(flip=flip, down=down, right=right) for flip in mirrored for down, right in moves)


def square_side(side: int) -> int:
    """Side in pixels of the white square trigger of Gu et al. 2017 (arXiv 1708.06733): 3 for images of side 32.

    It grows in proportion to the image's side.
    """
    return max(3, side * 3 // 32)
