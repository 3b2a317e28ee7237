"""The PPO microscope: one reply as tokens, and under each token every number that PPO made of it.

    stats, step = look(trainer, prompts)  # rlhf_lab.microscope
    MicroscopeWidget(step)

Which reply, which token, the colour and before-or-after are traits, so that two views agree and a reload loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import anywidget
import traitlets

from rlhf_lab.errors import InputError
from rlhf_lab.microscope import QUANTITIES, ReplyView, StepView

from .curves import STATIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("kl", "reward", "value", "advantage", "ratio", "logprob")


class MicroscopeWidget(anywidget.AnyWidget):
    """One PPO step's replies, token by token. `after` shows the numbers behind the update, else as they were before."""

    _esm = STATIC / "microscope.js"
    _css = STATIC / "microscope.css"
    data = traitlets.Dict().tag(sync=True)
    quantities = traitlets.List(read_only=True).tag(sync=True)
    reply = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    colour = traitlets.Enum(COLOURS, "advantage").tag(sync=True)
    after = traitlets.Bool(True).tag(sync=True)

    def __init__(self, step: StepView | None = None, **traits: object) -> None:
        self.step: StepView | None = None
        super().__init__(**traits)
        self.set_trait("quantities", [asdict(quantity) for quantity in QUANTITIES])
        if step is not None:
            self.show(step, self.reply, self.token)

    def show(self, step: StepView, reply: int = 0, token: int = 0) -> None:
        """Look at another step, from one of its replies on. Raises InputError where there is no such reply."""
        if not 0 <= reply < len(step.replies):
            raise InputError(f"reply {reply}: step {step.step} has replies 0 to {len(step.replies) - 1}")
        self.step = step
        with self.hold_sync():
            self.data, self.reply, self.token = step.to_dict(), reply, token

    @property
    def view(self) -> ReplyView:
        """The reply that is shown, as a record. Raises InputError before the first step."""
        if self.step is None:
            raise InputError("the microscope shows nothing yet: give it a StepView with show(step)")
        replies: Sequence[ReplyView] = self.step.replies
        return replies[max(0, min(len(replies) - 1, self.reply))]

    def figure(self) -> Figure:
        """The reply that is shown as a static picture, for a notebook that is saved."""
        from rlhf_lab.plots import token_strip

        return token_strip(self.view)
