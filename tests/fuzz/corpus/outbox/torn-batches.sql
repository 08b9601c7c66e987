-- outbox/base.db
UPDATE outbox_batch SET payload = substr(payload, 1, length(payload) / 2)
