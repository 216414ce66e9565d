"""The log, journals and ledger on a Kafka cluster."""
