-- outbox/base.db
UPDATE meta SET value = NULL WHERE key LIKE 'anchor_%'
