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
const help = '0 while the key file, or the key set of an issuer, cannot be read';
const readable = new Gauge({ name: 'mcp_auth_keys_readable', help, labelNames: ['issuer'] });
const count = new Gauge({ name: 'mcp_auth_keys', help: 'Keys that had not expired when they were loaded' });
const expiry = new Gauge({ name: 'mcp_auth_next_key_expiry_timestamp_seconds', help: 'When the next key expires' });

subscribe('mcp-auth-middleware', (message) => {
  const { type, reason = '', issuer = '', keyIds = [], nextExpiry = Infinity } = message as AuthEvent;
  events.inc({ type, reason, issuer });
  if (/^(keys|issuer)\.(loaded|fetched|failed)$/.test(type)) readable.set({ issuer }, type.endsWith('failed') ? 0 : 1);
  if (type === 'keys.loaded') count.set(keyIds.length);
  if (type === 'keys.loaded') expiry.set(nextExpiry);
});
