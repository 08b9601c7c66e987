-- recording/base.db
DROP TABLE ranks
