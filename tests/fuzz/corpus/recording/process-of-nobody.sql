-- recording/base.db
UPDATE series SET device = '[1, a]' WHERE metric LIKE 'process.%'
