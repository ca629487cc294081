"""What moderators leave behind: saved taxonomies, the queue, verdicts and the log of decisions, in one database."""
