-- recording/base.db
UPDATE meta SET value = 9e999 WHERE key LIKE 'agent_%'
