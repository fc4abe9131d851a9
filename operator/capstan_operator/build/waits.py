"""How long one rank may rightly wait for another."""

from capstan_operator.api.recovery_spec import RecoveryDeadlines


def longest_wait_seconds(deadlines: RecoveryDeadlines) -> int:
    """The longest a healthy rank can stand in a collective: a peer compiles, restores, joins or saves meanwhile.

    The libraries' own time limits are set to it, so that none is shorter than a deadline of the job, which would kill
    a healthy run, and none is left at a default of its own. A hang after that is the supervisor's to find.
    """
    return max(deadlines.form, deadlines.first_step, deadlines.save)
