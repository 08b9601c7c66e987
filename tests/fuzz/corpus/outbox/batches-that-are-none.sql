-- outbox/base.db
UPDATE outbox_batch SET payload = x'1f8b00ff', points = 'many'
