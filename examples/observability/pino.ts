// A line in the log for each decision and each change of keys, without a line in the server:
//
//   node --import ./pino.js server.js
import { subscribe } from 'node:diagnostics_channel';
import type { AuthEvent } from 'mcp-auth-middleware';
import { pino } from 'pino';

const log = pino({ name: 'mcp-auth-middleware', level: process.env.LOG_LEVEL ?? 'info' });
const quiet = new Set(['accepted', 'public']);
const loud = new Set(['failed', 'keys.failed', 'issuer.failed']);

subscribe('mcp-auth-middleware', (message) => {
  const event = message as AuthEvent; // nothing else is published there; no token, claim or key material is in it
  const level = quiet.has(event.type) ? 'debug' : loud.has(event.type) ? 'error' : 'info';
  log[level](event, event.type);
});
