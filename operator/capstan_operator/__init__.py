"""The Capstan operator: observes TrainingJobs, decides purely, applies once."""
