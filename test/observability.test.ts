// What operators copy: a log, metrics, spans and alerts out of the events on node:diagnostics_channel. The packages are
// the real ones, and nothing in the servers that are watched knows of them.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, it } from 'node:test';
import { context, metrics, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { type AuthOptions, type RefusalReason, withAuth } from 'mcp-auth-middleware';
import { register } from 'prom-client';
import { parse } from 'yaml';
import { newPair } from './support/tokens.js';
import { keyPair, needs, root, run, type Scope, serve, until } from './support/support.js';
import { ask, bearer, guard, mint, serverKeys, whoami } from './support/wire.js';

// The SDK that a user has, exporting to memory, and then the examples: they subscribe as they are imported.
context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
const spans = new InMemorySpanExporter();
trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }));
const exporter = new InMemoryMetricExporter(AggregationTemporality.DELTA);
const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 3_600_000 });
metrics.setGlobalMeterProvider(new MeterProvider({ readers: [reader] }));
await import('../examples/observability/opentelemetry.js');
await import('../examples/observability/prometheus.js');

/** A key file, and a way to put other octets into it. */
async function keyFile(scope: Scope): Promise<{ file: string; write: (content: string) => void }> {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, 'mcp-private.json');
  const write = (content: string): void => {
    writeFileSync(`${file}.new`, content, { mode: 0o600 });
    renameSync(`${file}.new`, file); // a look never meets half of it
  };
  write(JSON.stringify(await serverKeys()));
  return { file, write };
}
const kidOf = async (): Promise<string> => (await keyPair()).publicJwk.kid ?? '';

describe('examples/observability/pino.ts', () => {
  /** The example server with the log in front of it, and the lines of the log so far. */
  async function logged(scope: Scope, file: string): Promise<{ url: string; lines: Record<string, unknown>[] }> {
    const examples = join(root, 'build/examples');
    const args = ['--import', join(examples, 'observability/pino.js'), join(examples, 'server.js')];
    const child = spawn(process.execPath, args, {
      env: { ...process.env, PORT: '0', LOG_LEVEL: 'debug', MCP_KEY_FILE_PATH: file },
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 60_000,
      killSignal: 'SIGKILL',
    });
    scope.after(() => child.kill('SIGKILL'));
    const lines: Record<string, unknown>[] = [];
    let url = '';
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (line.startsWith('{')) lines.push(JSON.parse(line));
      else url = /http:\S+/.exec(line)?.[0] ?? url;
    });
    await until(() => url !== '');
    return { url, lines };
  }
  const LEVELS = { debug: 20, info: 30, error: 50 };

  it('logs each decision with its reason, and no token, without a line in the server', async (t) => {
    const { url, lines } = await logged(t, (await keyFile(t)).file);
    const token = await mint({ sub: 'ada', name: 'Ada' });
    for (const authorization of ['', 'Bearer nonsense', `Bearer ${token}`]) {
      const headers = new Headers(authorization ? { authorization } : {});
      await (await fetch(new URL('/elsewhere', url), { headers })).arrayBuffer();
    }
    await until(() => lines.some(({ type }) => type === 'accepted'));
    const shown = lines.map(({ level, msg, reason, status }) => [level, msg, reason, status]);
    assert.deepEqual(shown.slice(0, 3), [
      [LEVELS.info, 'keys.loaded', undefined, undefined],
      [LEVELS.info, 'rejected', 'no_token', 401],
      [LEVELS.info, 'rejected', 'malformed', 401],
    ]);
    assert.deepEqual(shown[3]?.slice(0, 2), [LEVELS.debug, 'accepted']);
    const text = JSON.stringify(lines);
    assert.deepEqual([text.includes(token), text.includes('Ada')], [false, false]);
    assert.equal(lines[0]?.keyId, await kidOf());
  });

  it('logs as an error that the key file has become unreadable, with what to do', async (t) => {
    const { file, write } = await keyFile(t);
    const { lines } = await logged(t, file);
    write('{"keys":');
    await until(() => lines.some(({ type }) => type === 'keys.failed'));
    const line = lines.find(({ type }) => type === 'keys.failed');
    assert.deepEqual([line?.level, line?.code], [LEVELS.error, 'malformed']);
    assert.ok(String(line?.message).includes(file), String(line?.message));
  });
});

describe('examples/observability/opentelemetry.ts', () => {
  /** A server whose requests are spans, as instrumentation of node:http makes them. */
  async function traced(scope: Scope, options: AuthOptions = {}): Promise<number> {
    const guarded = withAuth(whoami, { keys: await serverKeys(), ...options });
    const { port } = await serve(scope, (req, res) => {
      trace.getTracer('http').startActiveSpan(req.url ?? '', (span) => {
        res.on('close', () => span.end());
        guarded(req, res);
      });
    });
    return port;
  }

  it('puts each decision on the span of its own request, of twenty at once', async (t) => {
    const port = await traced(t, { requiredClaims: ['email'] });
    spans.reset();
    const requests = Array.from({ length: 20 }, async (_, i) => {
      const claims = i % 2 ? { sub: `user ${i}`, email: 'e@example.com' } : { sub: `user ${i}` };
      const { status } = await ask(port, { path: `/${i}`, headers: await bearer(claims) });
      assert.equal(status, i % 2 ? 200 : 403);
    });
    await Promise.all(requests);
    await until(() => spans.getFinishedSpans().length === requests.length);
    for (const { name, attributes } of spans.getFinishedSpans()) {
      const accepted = Number(name.slice(1)) % 2 === 1;
      assert.deepEqual(
        [attributes['mcp_auth.type'], attributes['mcp_auth.reason']],
        accepted ? ['accepted', undefined] : ['rejected', 'insufficient_scope'],
      );
      if (accepted) assert.equal(attributes['mcp_auth.key_id'], await kidOf());
      assert.ok(!JSON.stringify(attributes).includes('example.com'), 'no claim');
    }
  });

  it('counts the decisions by type and reason, and measures how long they took', async (t) => {
    const port = await traced(t);
    await reader.forceFlush();
    exporter.reset();
    const headers = await bearer({ sub: 'ada' });
    for (const fields of [{}, {}, { authorization: 'Bearer nonsense' }, headers, headers, headers])
      await ask(port, { headers: fields });
    await reader.forceFlush();
    const collected = exporter
      .getMetrics()
      .flatMap(({ scopeMetrics }) => scopeMetrics.flatMap((scope) => scope.metrics));
    const points = (name: string): { attributes: object; value: unknown }[] =>
      collected.filter(({ descriptor }) => descriptor.name === name).flatMap(({ dataPoints }) => [...dataPoints]);
    const counted = points('mcp_auth.events').map(({ attributes, value }) => [JSON.stringify(attributes), value]);
    assert.deepEqual(counted.sort(), [
      ['{"type":"accepted"}', 3],
      ['{"type":"rejected","reason":"malformed"}', 1],
      ['{"type":"rejected","reason":"no_token"}', 2],
    ]);
    const [accepted] = points('mcp_auth.duration').filter(
      ({ attributes }) => JSON.stringify(attributes) === '{"type":"accepted"}',
    );
    assert.match(JSON.stringify(accepted?.value), /"count":3\b/);
  });
});

describe('examples/observability/prometheus.ts', () => {
  /** The value of a metric with these labels, 0 where it has none. */
  async function value(name: string, labels: Record<string, string> = {}): Promise<number> {
    const { values = [] } = (await register.getSingleMetric(name)?.get()) ?? {};
    const fits = (own: object): boolean =>
      Object.entries(labels).every(([key, text]) => Reflect.get(own, key) === text);
    return values.filter((entry) => fits(entry.labels)).reduce((sum, entry) => sum + entry.value, 0);
  }

  /** Waits for a metric that a timer of the middleware changes. */
  async function reached(name: string, wanted: number, labels: Record<string, string> = {}): Promise<void> {
    const values: number[] = [];
    await until(() => {
      void value(name, labels).then((latest) => values.push(latest));
      return values.at(-1) === wanted;
    });
  }

  it('counts refusals by reason', async (t) => {
    const { port } = await guard(t);
    const counts = async (): Promise<number[]> =>
      Promise.all(
        ['no_token', 'malformed', ''].map((reason) =>
          value('mcp_auth_events_total', { type: reason ? 'rejected' : 'accepted', reason }),
        ),
      );
    const before = await counts();
    for (const headers of [{}, { authorization: 'Bearer nonsense' }, {}, await bearer({ sub: 'ada' })])
      await ask(port, { headers });
    const after = await counts();
    assert.deepEqual(
      after.map((count, index) => count - (before[index] ?? 0)),
      [2, 1, 1],
    );
  });

  it('knows when a key expires, and counts that the key file cannot be read', async (t) => {
    const { file, write } = await keyFile(t);
    await guard(t, { keyFile: file });
    assert.deepEqual(
      [await value('mcp_auth_keys'), await value('mcp_auth_next_key_expiry_timestamp_seconds')],
      [1, Infinity],
    );
    const exp = Math.floor(Date.now() / 1000) + 3600;
    const { privateJwk } = await keyPair('next');
    write(JSON.stringify({ keys: [{ ...(await keyPair()).privateJwk, exp }, privateJwk] }));
    await reached('mcp_auth_next_key_expiry_timestamp_seconds', exp);
    assert.equal(await value('mcp_auth_keys'), 2);
    assert.equal(await value('mcp_auth_events_total', { type: 'keys.failed' }), 0);
    write('{"keys":');
    await reached('mcp_auth_events_total', 1, { type: 'keys.failed' });
    write(JSON.stringify(await serverKeys()));
    await reached('mcp_auth_next_key_expiry_timestamp_seconds', Infinity);
    assert.equal(await value('mcp_auth_keys'), 1);
  });

  it('knows which issuer is down', async (t) => {
    const keys = [newPair('ed25519').publicKey.export({ format: 'jwk' })];
    const up = await serve(t, (_req, res) => void res.end(JSON.stringify({ keys })));
    const broken = await serve(t, (_req, res) => void res.writeHead(500).end());
    const jwks = (url: string): URL => new URL('/jwks.json', url);
    await guard(t, {
      resource: 'https://mcp.example/mcp',
      trustedIssuers: [
        { issuer: 'https://up.example', jwks: jwks(up.url) },
        { issuer: 'https://down.example', jwks: jwks(broken.url) },
      ],
    });
    await reached('mcp_auth_events_total', 1, { type: 'issuer.fetched', issuer: 'https://up.example' });
    await reached('mcp_auth_events_total', 1, { type: 'issuer.failed', issuer: 'https://down.example' });
    assert.equal(await value('mcp_auth_events_total', { type: 'issuer.failed', issuer: 'https://up.example' }), 0);
  });
});

describe('examples/observability/alerts.yml', () => {
  const file = join(root, 'examples/observability/alerts.yml');
  const text = readFileSync(file, 'utf8');
  const rules: { alert: string; expr: string }[] = parse(text).groups.flatMap(({ rules }: { rules: [] }) => rules);
  const unitTests = join(root, 'test/support/alerts.test.yml');

  it('is what Prometheus takes for rules', needs('promtool'), async () => {
    const { code, stdout, stderr } = await run('promtool', ['check', 'rules', '--lint-fatal', file]);
    assert.equal(code, 0, stdout + stderr);
    assert.match(stdout, new RegExp(`SUCCESS: ${rules.length} rules found`));
  });

  it('fires when it should and is silent when it should be', needs('promtool'), async () => {
    const { code, stdout, stderr } = await run('promtool', ['test', 'rules', unitTests]);
    assert.equal(code, 0, stdout + stderr);
  });

  it('has a case for each rule in which it fires, and one in which it does not', () => {
    const cases: { alertname: string; exp_alerts: unknown[] }[] = parse(readFileSync(unitTests, 'utf8')).tests.flatMap(
      ({ alert_rule_test }: { alert_rule_test: [] }) => alert_rule_test,
    );
    for (const { alert } of rules) {
      const sizes = new Set(cases.filter((one) => one.alertname === alert).map((one) => one.exp_alerts.length));
      assert.deepEqual([...sizes].sort(), [0, 1], alert);
    }
  });

  it('asks only for metrics of prometheus.ts, and names only reasons that there are', () => {
    const named = new Set(rules.flatMap(({ expr }) => expr.match(/\bmcp_auth_\w+/g) ?? []));
    for (const metric of named) assert.ok(register.getSingleMetric(metric), metric);
    assert.ok(named.size > 0);
    const reasons: RefusalReason[] = ['no_token', 'unknown_key', 'expired', 'malformed']; // compiled
    for (const reason of reasons) assert.ok(text.includes(reason), reason);
  });

  it('comes with metrics as Prometheus likes them', needs('promtool'), async () => {
    const input = await register.metrics();
    const { code, stdout, stderr } = await run('promtool', ['check', 'metrics'], { input });
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: '', stderr: '' });
  });
});
