"""Questions that wait in the widget until somebody answers, without stopping the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtpy.QtWidgets import QFrame, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_tcl.widget.buttons import tool_button

__all__ = ["QuestionBar"]

Answers = Mapping[str, Callable[[], None]]


class QuestionBar(QFrame):
    """Shows one question at a time, with a button for each answer; others wait behind it.

    Not a dialog, because what is asked about may happen often or by a script, and because the layers are needed to
    decide.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, tuple[str, Answers]] = {}
        self.text = QLabel("")
        self.text.setWordWrap(True)
        self.text.setToolTip("A decision that only you can take.")
        self._row = QHBoxLayout()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.text)
        layout.addLayout(self._row)
        self.setObjectName("question")
        self.setStyleSheet("#question { border: 1px solid #f08c00; }")
        self.hide()

    @property
    def topic(self) -> str | None:
        """What the question that is shown is about."""
        return next(iter(self._waiting), None)

    @property
    def answers(self) -> list[str]:
        """The answers that are offered."""
        return list(self._waiting[self.topic][1]) if self.topic is not None else []

    def ask(self, topic: str, text: str, answers: Answers) -> None:
        """Ask something, in place of an older question on the same topic.

        Args:
            topic: what it is about.
            text: the question.
            answers: what the buttons say and do.
        """
        self._waiting[topic] = (text, answers)
        self._show()

    def withdraw(self, topic: str) -> None:
        """Ask no longer, because it does not matter any more."""
        if self._waiting.pop(topic, None) is not None:
            self._show()

    def answer(self, text: str) -> None:
        """Give one of the answers that are shown, as its button does."""
        assert self.topic is not None
        _, answers = self._waiting.pop(self.topic)
        self._show()
        answers[text]()

    def _show(self) -> None:
        while (item := self._row.takeAt(0)) is not None:
            old = item.widget()
            if isinstance(old, QWidget):
                old.hide()
                old.deleteLater()
        self.setVisible(self.topic is not None)
        if self.topic is None:
            return
        text, answers = self._waiting[self.topic]
        self.text.setText(text)
        for answer in answers:
            button = tool_button(answer, text)
            button.clicked.connect(lambda _=False, answer=answer: self.answer(answer))
            self._row.addWidget(button)
