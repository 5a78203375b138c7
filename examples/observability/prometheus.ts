// What alerts.yml watches, in prom-client's default registry:
//
//   node --import ./prometheus.js server.js
//
// The one line for the server is what Prometheus reads, on a port of its own: res.end(await register.metrics())
import { subscribe } from 'node:diagnostics_channel';
import type { AuthEvent } from 'mcp-auth-middleware';
import { Counter, Gauge } from 'prom-client';

const labelNames = ['type', 'reason', 'issuer'];
const events = new Counter({ name: 'mcp_auth_events_total', help: 'Decisions and changes of keys', labelNames });
const count = new Gauge({ name: 'mcp_auth_keys', help: 'Keys that had not expired when they were loaded' });
const expiry = new Gauge({ name: 'mcp_auth_next_key_expiry_timestamp_seconds', help: 'When the next key expires' });
events.inc({ type: 'failed', reason: 'failed', issuer: '' }, 0); // Prometheus sees no increase from nothing to 1

subscribe('mcp-auth-middleware', (message) => {
  const { type, reason = '', issuer = '', kids = [], nextExpiry = Infinity } = message as AuthEvent;
  events.inc({ type, reason, issuer });
  if (type !== 'keys.loaded' && type !== 'keys.active') return;
  count.set(kids.length);
  expiry.set(nextExpiry);
});
