"""A user's own program in the place of a trainer: `attach`, and the five things that a Job does."""
