"""What a run tells, on its way into the store: logs, records, and the publisher behind its breaker."""
