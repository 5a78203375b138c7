// Metrics of what the middleware decides, and attributes on the span of the request, without a line in the server:
//
//   node --import ./your-sdk.js --import ./opentelemetry.js server.js
import { subscribe } from 'node:diagnostics_channel';
import { metrics, trace } from '@opentelemetry/api';
import type { AuthEvent } from 'mcp-auth-middleware';

const meter = metrics.getMeter('mcp-auth-middleware'); // the SDK's, so it must have been started before
const events = meter.createCounter('mcp_auth.events', { description: 'Decisions and changes of keys' });
const durations = meter.createHistogram('mcp_auth.duration', { unit: 's', description: 'Time to a decision' });

subscribe('mcp-auth-middleware', (message) => {
  const { type, reason, issuer, durationMs, keyId, signed, cached } = message as AuthEvent;
  events.add(1, { type, reason, issuer });
  if (durationMs !== undefined) durations.record(durationMs / 1000, { type });
  if (type.includes('.')) return; // keys and issuers belong to no request
  const details = { type, reason, issuer, key_id: keyId, signed, cached };
  for (const [name, value] of Object.entries(details)) {
    if (value !== undefined) trace.getActiveSpan()?.setAttribute(`mcp_auth.${name}`, value);
  }
});
