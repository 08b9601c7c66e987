-- recording/base.db
UPDATE meta SET value = 'text' WHERE key = 'job_status'
