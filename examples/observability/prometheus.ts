// What alerts.yml watches, in prom-client's default registry, without a line in the server but the one that serves it:
//
//   node --import ./prometheus.js server.js     // and in the server, on a port of its own: res.end(await register.metrics())
import { subscribe } from 'node:diagnostics_channel';
import type { AuthEvent } from 'mcp-auth-middleware';
import { Counter, Gauge } from 'prom-client';

const labelNames = ['type', 'reason', 'issuer'];
const events = new Counter({ name: 'mcp_auth_events_total', help: 'Decisions and changes of keys', labelNames });
const readable = new Gauge({ name: 'mcp_auth_keys_readable', help: '0 while the key file cannot be read' });
const count = new Gauge({ name: 'mcp_auth_keys', help: 'Keys that had not expired when they were loaded' });
const expiry = new Gauge({ name: 'mcp_auth_next_key_expiry_timestamp_seconds', help: 'When the next key expires' });
const issuerUp = new Gauge({
  name: 'mcp_auth_issuer_up',
  help: '0 while keys cannot be fetched',
  labelNames: ['issuer'],
});

subscribe('mcp-auth-middleware', (message) => {
  const { type, reason = '', issuer = '', keyIds = [], nextExpiry = Infinity } = message as AuthEvent;
  events.inc({ type, reason, issuer });
  if (type === 'issuer.fetched' || type === 'issuer.failed')
    issuerUp.set({ issuer }, Number(type === 'issuer.fetched'));
  if (type === 'keys.loaded' || type === 'keys.failed') readable.set(Number(type === 'keys.loaded'));
  if (type !== 'keys.loaded') return;
  count.set(keyIds.length);
  expiry.set(nextExpiry);
});
