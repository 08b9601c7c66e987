-- recording/base.db
UPDATE events SET attributes = 'null', rank = 'a'
