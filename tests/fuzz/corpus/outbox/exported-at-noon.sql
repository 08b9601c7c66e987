-- outbox/base.db
UPDATE meta SET value = 'noon' WHERE key = 'exported_ns'
