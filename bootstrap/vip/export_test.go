package vip

import "time"

// Lasts gives a queue leases of another length than TTL.
func (q *Queue) Lasts(ttl time.Duration) *Queue {
	q.ttl = ttl
	return q
}
