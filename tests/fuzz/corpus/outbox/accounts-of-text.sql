-- outbox/base.db
UPDATE outbox_account SET batches = 'a', state = 'lost'
