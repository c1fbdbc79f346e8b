"""The controller: watches RecTrainingJobs and what belongs to them, decides, and acts.

`decide` holds every policy and touches nothing; the rest reads, writes and waits.
"""
