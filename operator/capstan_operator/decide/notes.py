"""What ranks found worth telling: kept on status, so that each line is told once."""

from capstan_operator.api.recovery_status import NoteStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.situation import Situation

NOTES_KEPT = 20
NOTE_LENGTH = 300


def learn_notes(situation: Situation) -> TrainingJobStatus:
    """Status with the notes of the attempt that is on. What all ranks say is told once, by the first that says it.

    Rank 0's newest are always kept. Other ranks' only while there is room: a note that was dropped and is still said
    would otherwise be told again and again.
    """
    status = situation.status
    notes = list(status.notes)
    known = {note.message for note in notes if note.fence == status.fence}
    for worker in situation.members:
        word = worker.word
        if word is None or word.fence != status.fence:
            continue
        for text in word.notes:
            message = text[:NOTE_LENGTH]
            is_own = sum(note.fence == status.fence for note in notes) < NOTES_KEPT
            if message not in known and (word.rank == 0 or is_own):
                known.add(message)
                notes.append(NoteStatus(fence=status.fence, rank=word.rank, message=message))
    return status if len(notes) == len(status.notes) else status.model_copy(update={"notes": notes[-NOTES_KEPT:]})
