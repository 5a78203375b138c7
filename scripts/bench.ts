// npm run bench [-- --short] [--json | --markdown] [--only NAME,…]: what the middleware costs beside others, in one run on one machine.
// The sides of a row are measured in turns, so that what else the machine does hits both: a row gives the medians of its rounds, and as
// ratio the median of the rounds' ratios. A round before the first warms both up.
// --short is for CI: it fails when a counted fact is wrong (operations, answers), never for a time.
import { spawn, spawnSync } from 'node:child_process';
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  createCipheriv,
  constants,
  generateKeyPairSync,
  publicEncrypt,
  randomBytes,
} from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { createVerifier } from 'fast-jwt';
import { compactDecrypt as joseDecrypt, importJWK, jwtVerify, SignJWT } from 'jose';
import { compactDecrypt, encryptToken, generateKeyPair, JWETokenVerifier } from 'mcp-auth-middleware';
import { Bench } from 'tinybench';
import { countRsa } from '../test/support/rsa.js';
import { root } from '../test/support/support.js';
import type { Load, LoadResult } from './bench-load.js';
import type { ServerInput, ServerState } from './bench-server.js';

interface Row {
  what: string;
  figure: string;
  /** What it is measured against. */
  against?: string;
  ratio?: number;
  target?: string;
  met?: boolean;
}

const flags = new Set(process.argv.slice(2).filter((flag) => flag.startsWith('--')));
const short = flags.has('--short');
const only = process.argv[process.argv.indexOf('--only') + 1 || Infinity]?.split(',');
const rows: Row[] = [];
const wrong: string[] = [];

/** A fact that is counted, and so must hold on any machine. */
function expect(what: string, actual: unknown, expected: unknown): void {
  if (JSON.stringify(actual) !== JSON.stringify(expected))
    wrong.push(`${what}: ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`);
}

const note = (line: string): void => {
  process.stderr.write(`${line}\n`);
};
const median = (values: number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
const round = (value: number): string => value.toLocaleString('en', { maximumSignificantDigits: 3 });
const perSecond = (value: number): string => `${round(value)}/s`;

/** Runs the sides in turns, each time in the other order. */
async function inTurns<Name extends string>(
  rounds: number,
  sides: Record<Name, () => Promise<number>>,
): Promise<Record<Name, number[]>> {
  const names = Object.keys(sides) as Name[];
  const values = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<Name, number[]>;
  if (!short) for (const name of names) await sides[name]();
  for (let i = 0; i < rounds; i += 1) {
    for (const name of i % 2 === 0 ? names : names.toReversed()) values[name].push(await sides[name]());
  }
  return values;
}

/** The median of what each round gave. */
const ratioOf = (ours: number[], others: number[]): number => median(ours.map((one, i) => one / (others[i] ?? NaN)));

note('keys and tokens …');
const { privateJwk, publicJwk } = await generateKeyPair();
const claims = { sub: 'alice', email: 'alice@example.com', name: 'Alice', groups: ['staff', 'research'] };
const mint = (jti: number): Promise<string> => encryptToken({ ...claims, jti: String(jti) }, publicJwk);
const token = await mint(0);
const verifierOf = (): JWETokenVerifier => new JWETokenVerifier({ keys: privateJwk, maxPending: 10_000 });
const signing = generateKeyPairSync('rsa', { modulusLength: 2048 });
const [publicPem, privatePem] = [
  signing.publicKey.export({ format: 'pem', type: 'spki' }),
  createPrivateKey({ key: { ...privateJwk }, format: 'jwk' }).export({ format: 'pem', type: 'pkcs8' }),
];
const sign = (alg: string): Promise<string> =>
  new SignJWT(claims)
    .setProtectedHeader({ alg })
    .setIssuedAt()
    .setIssuer('issuer')
    .setAudience('audience')
    .setExpirationTime('1h')
    .sign(signing.privateKey);
const input: ServerInput = {
  keys: JSON.stringify(privateJwk),
  signer: { ...signing.publicKey.export({ format: 'jwk' }), kty: 'RSA' },
};

// ## New tokens: RSA is the whole cost

/** Operations/s that the linked library does in one thread a core, without anything around. */
async function rsaCapacity(): Promise<number> {
  const workers = Array.from(
    { length: availableParallelism() },
    () =>
      new Worker(new URL('./bench-rsa.js', import.meta.url), {
        workerData: { pem: privatePem, seconds: short ? 0.3 : 1 },
      }),
  );
  const rates = await Promise.all(workers.map(async (worker) => Number((await once(worker, 'message'))[0])));
  return rates.reduce((sum, rate) => sum + rate, 0);
}

/** The same by openssl's own measurement; NaN without one. It may be another version than the runtime links. */
async function opensslSpeed(): Promise<number> {
  const speed = spawnSync('openssl', ['speed', '-seconds', '1', '-multi', String(availableParallelism()), 'rsa4096'], {
    encoding: 'utf8',
  });
  return Number(/^rsa 4096 bits +\S+s +\S+s +([\d.]+)/m.exec(speed.stdout ?? '')?.[1]);
}

const opensslVersion = (): string =>
  spawnSync('openssl', ['version'], { encoding: 'utf8' }).stdout.split(' ').slice(0, 2).join(' ');

async function cold(): Promise<void> {
  const count = short ? 40 : 900; // two seconds: the first operations in each lane and the last ones, with no other beside them, count little
  const concurrency = 32;
  const tokens = await Promise.all(Array.from({ length: count }, (_, i) => mint(i)));
  const joseKey = await importJWK({ ...privateJwk }, 'RSA-OAEP-256');
  const rate = async (open: (token: string) => Promise<unknown>): Promise<number> => {
    await Promise.all(Array.from({ length: 8 }, () => open(token)));
    const queue = tokens.values();
    const start = performance.now();
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        for (const one of queue) await open(one);
      }),
    );
    return count / ((performance.now() - start) / 1000);
  };
  const authenticate = async (): Promise<number> => {
    const verifier = verifierOf();
    let result = 0;
    expect(
      'operations for new tokens',
      await countRsa(async () => {
        result = await rate((one) => verifier.authenticate(one));
      }),
      count + 1,
    );
    expect(
      'operations for the same tokens again',
      await countRsa(() => Promise.all(tokens.map((one) => verifier.authenticate(one)))),
      0,
    );
    return result;
  };
  const sides = await inTurns(short ? 1 : 9, {
    authenticate,
    compactDecrypt: () => rate((one) => compactDecrypt(one, privateJwk)),
    jose: () => rate((one) => joseDecrypt(one, joseKey)),
    rsa: rsaCapacity,
    openssl: opensslSpeed,
  });
  const compare = (
    what: string,
    ours: number[],
    other: string,
    others: number[],
    target: number | undefined,
    on = '',
  ): void => {
    const ratio = ratioOf(ours, others);
    rows.push({
      what,
      figure: perSecond(median(ours)),
      against: `${other} ${perSecond(median(others))}`,
      ratio,
      ...(target !== undefined && { target: `≥ ${target}${on}`, met: ratio >= target }),
    });
  };
  compare(
    `new tokens, authenticate (RSA-4096, ${concurrency} at a time)`,
    sides.authenticate,
    'jose compactDecrypt',
    sides.jose,
    1.7,
    ' on 2 cores',
  );
  compare('new tokens, compactDecrypt', sides.compactDecrypt, 'jose compactDecrypt', sides.jose, 1.7, ' on 2 cores');
  compare('new tokens, authenticate', sides.authenticate, 'bare RSA of the runtime, a thread a core', sides.rsa, 0.9);
  const version = opensslVersion();
  const isLinked = version === `OpenSSL ${process.versions.openssl.split('+')[0]}`;
  if (sides.openssl.every((rate) => rate > 0))
    compare(
      'new tokens, authenticate',
      sides.authenticate,
      `openssl speed -multi ${availableParallelism()} rsa4096 (${version})`,
      sides.openssl,
      isLinked ? 0.9 : undefined,
    );
}

// ## Known and malformed tokens, without a server

const CALLS = 100;

async function calls(): Promise<void> {
  const verifier = verifierOf();
  await verifier.authenticate(token);
  const [rs256, rs512] = [await sign('RS256'), await sign('RS512')];
  const bad = {
    'no JSON': `AAAA${token}`,
    'a header cut short': token.replace(/.{4}\./, '.'),
    'a wrong length': `${token}A`,
    whitespace: ` ${token}`,
  };
  const bench = new Bench({ time: short ? 20 : 2000, warmupTime: short ? 5 : 300 });
  // A call takes less than tinybench's own look at the clock, so a task makes many of them.
  const add = (name: string, call: () => unknown): unknown =>
    bench.add(name, async () => {
      for (let i = 0; i < CALLS; i += 1) await call();
    });
  add('hit', () => verifier.authenticate(token));
  for (const [name, one] of Object.entries(bad)) add(name, () => verifier.authenticate(one).catch(() => {}));
  for (const [alg, jwt] of [
    ['RS256', rs256],
    ['RS512', rs512],
  ] as const) {
    for (const cache of [false, true]) {
      const verify = createVerifier({ key: publicPem, cache, allowedIss: 'issuer', allowedAud: 'audience' });
      add(`fast-jwt ${alg}${cache ? ' cached' : ''}`, () => verify(jwt));
    }
  }
  add('jose RS256', () => jwtVerify(rs256, signing.publicKey, { issuer: 'issuer', audience: 'audience' }));
  add('SHA-256', () => createHash('sha256').update(token).digest('base64url'));
  expect('operations for known and malformed tokens', await countRsa(() => bench.run()), 0);
  const rate = (name: string): number => {
    const result = bench.getTask(name)?.result;
    return result && 'latency' in result ? (1000 * CALLS) / result.latency.mean : NaN;
  };
  const hit = rate('hit');
  rows.push({
    what: 'known token, authenticate',
    figure: `${round(1e6 / hit)} µs`,
    against: `its SHA-256 alone ${round(1e6 / rate('SHA-256'))} µs`,
    ratio: rate('SHA-256') / hit,
    target: '< 5 µs',
    met: 1e6 / hit < 5,
  });
  for (const name of ['RS256 cached', 'RS512 cached', 'RS256', 'RS512']
    .map((kind) => `fast-jwt ${kind}`)
    .concat('jose RS256')) {
    rows.push({
      what: 'known token, authenticate',
      figure: perSecond(hit),
      against: `${name} ${perSecond(rate(name))}`,
      ratio: hit / rate(name),
    });
  }
  for (const name of Object.keys(bad))
    rows.push({
      what: `malformed token (${name}), refused`,
      figure: perSecond(rate(name)),
      target: '≥ 100,000/s per core',
      met: rate(name) >= 100_000,
    });
}

// ## Known tokens through a server

interface RunningServer {
  url: string;
  state: () => Promise<ServerState>;
  stop: () => void;
}

async function startServer(name: string): Promise<RunningServer> {
  const child = spawn(
    process.execPath,
    ['--expose-gc', '--no-warnings', join(root, 'build/scripts/bench-server.js'), name],
    {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      env: { ...process.env, BENCH_INPUT: JSON.stringify(input) },
    },
  );
  const [{ port }] = (await once(child, 'message')) as [{ port: number }];
  const state = async (): Promise<ServerState> => {
    child.send('state');
    return ((await once(child, 'message')) as [ServerState])[0];
  };
  return {
    url: `http://127.0.0.1:${port}/`,
    state,
    stop: () => {
      child.kill();
    },
  };
}

async function load(options: Load): Promise<LoadResult> {
  const child = spawn(process.execPath, [join(root, 'build/scripts/bench-load.js'), JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return JSON.parse(await text(child.stdout)) as LoadResult;
}

async function known(): Promise<void> {
  const duration = short ? 1 : 2;
  const jwt = await sign('RS256');
  // A new process for each turn: once the collector has run while a server idles, Node's own `process.nextTick` may stay slow in it for good.
  const rate = (what: string, name: string, bearer: string, rsa: number) => async (): Promise<number> => {
    const server = await startServer(name);
    if (!short) await load({ url: server.url, duration: 1, connections: 32, token: bearer });
    const {
      perSecond: requests,
      refused,
      errors,
    } = await load({ url: server.url, duration, connections: 32, token: bearer });
    expect(`refused known tokens, ${what}`, [refused, errors], [{}, 0]);
    expect(`operations for a known token, ${what}, ${name}`, (await server.state()).rsa, rsa);
    server.stop();
    return requests;
  };
  const compare = async (
    what: string,
    ours: string,
    rsa: number,
    other: string,
    target: number | undefined,
    otherToken = token,
  ): Promise<void> => {
    const rates = await inTurns(short ? 1 : 7, {
      ours: rate(what, ours, token, rsa),
      other: rate(what, other, otherToken, 0),
    });
    const ratio = ratioOf(rates.ours, rates.other);
    rows.push({
      what,
      figure: perSecond(median(rates.ours)),
      against: `${other} ${perSecond(median(rates.other))}`,
      ratio,
      ...(target !== undefined && { target: `≥ ${target}`, met: ratio >= target }),
    });
  };
  await compare('requests with a known token, http', 'ours', 1, 'bare', 0.88);
  await compare('of which AsyncLocalStorage.run alone', 'storage', 0, 'bare', undefined);
  await compare('requests with a known token, express', 'express-ours', 1, 'express', undefined);
  await compare('requests with a known token, express', 'express-ours', 1, 'express-sdk', undefined, jwt);
}

// ## Overload

async function overload(): Promise<void> {
  const duration = short ? 2 : 10;
  const server = await startServer('ours');
  const { url } = server;
  const ask = { url, duration, connections: 10, rate: 200, token };
  await load({ ...ask, duration: 1 });
  await server.state();
  const before = await load(ask);
  const calm = await server.state();
  const flooding = load({ url, duration: duration + 2, connections: 600, rate: 3000, token, forged: true });
  await sleep(1000); // until its 600 connections stand, which any server takes a while to accept
  const during = await load(ask);
  const flooded = await server.state();
  const flood = await flooding;
  const askFresh = async (jti: number): Promise<number> =>
    (await fetch(url, { headers: { authorization: `Bearer ${await mint(jti)}` } })).status;
  const start = performance.now();
  const first = await askFresh(-1);
  const recovered = performance.now() - start;
  let settled = await server.state();
  for (let before = -1; before !== settled.rsa;) {
    // what the flood left under way is no cost of what follows
    before = settled.rsa;
    await sleep(500);
    settled = await server.state();
  }
  const fresh = await askFresh(-2);
  const after = await load(ask);
  const end = await server.state();
  server.stop();
  expect(
    'known tokens refused before, during and after a flood',
    [before, during, after].map(({ refused, errors }) => [refused, errors]),
    [
      [{}, 0],
      [{}, 0],
      [{}, 0],
    ],
  );
  expect('forged tokens accepted', flood.ok, 0);
  expect(
    'answers to forged tokens other than 401 and 503',
    Object.keys(flood.refused).filter((status) => status !== '401' && status !== '503'),
    [],
  );
  expect('a new token after the flood', fresh, 200);
  expect('operations for a new token after the flood', end.rsa - settled.rsa, 1);
  const answers = Object.entries(flood.refused)
    .map(([status, count]) => `${status}: ${count}`)
    .join(', ');
  rows.push({
    what: `known tokens during a flood of forged ones (${round(flood.perSecond)}/s, ${answers}), p99`,
    figure: `${round(during.p99)} ms`,
    against: `without a flood ${round(before.p99)} ms, after it ${round(after.p99)} ms`,
    target: '< 30 ms',
    met: during.p99 < 30,
  });
  rows.push({
    what: 'event-loop delay during the flood, p99',
    figure: `${round(flooded.delayP99)} ms`,
    against: `without it ${round(calm.delayP99)} ms`,
    target: '< 20 ms',
    met: flooded.delayP99 < 20,
  });
  rows.push({
    what: 'heap in use after the flood',
    figure: `${round(end.heap / 2 ** 20)} MiB`,
    against: `before it ${round(calm.heap / 2 ** 20)} MiB`,
    ratio: end.heap / calm.heap,
  });
  rows.push({ what: 'first new token right after the flood', figure: `${first} in ${round(recovered)} ms` });
}

// ## Start

async function startUp(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'bench-'));
  const empty = join(folder, 'empty.mjs');
  writeFileSync(empty, 'export {};\n');
  const time = (file: string) => async (): Promise<number> => {
    const program = `const start = performance.now(); await import(${JSON.stringify(pathToFileURL(file).href)}); process.stdout.write(String(performance.now() - start));`;
    return Number(spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' }).stdout);
  };
  const sides = await inTurns(short ? 3 : 31, { library: time(join(root, 'dist/mcp-auth.js')), empty: time(empty) });
  rmSync(folder, { recursive: true });
  const cost = median(sides.library) - median(sides.empty);
  rows.push({
    what: 'import of dist/mcp-auth.js',
    figure: `${round(median(sides.library))} ms`,
    against: `an empty module ${round(median(sides.empty))} ms`,
    target: '< 8 ms more',
    met: cost < 8,
  });
}

// ## Can refusals be told apart by their time?

/** Welch's t of two samples; beyond about 4.5 a difference is likely (dudect). */
function welch(a: number[], b: number[]): number {
  const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const error = (values: number[]): number =>
    values.reduce((sum, value) => sum + (value - mean(values)) ** 2, 0) / (values.length - 1) / values.length;
  return (mean(a) - mean(b)) / Math.sqrt(error(a) + error(b));
}

async function refusals(): Promise<void> {
  const samples = short ? 20 : 1500;
  const [header = ''] = token.split('.');
  const key = createPublicKey({ key: { ...publicJwk }, format: 'jwk' });
  const wrap = (cek: Buffer): Buffer =>
    publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' }, cek);
  const seal = (encryptedKey: Buffer): string => {
    const [cek, iv] = [randomBytes(32), randomBytes(12)];
    const cipher = createCipheriv('aes-256-gcm', cek, iv).setAAD(Buffer.from(header));
    const ciphertext = Buffer.concat([cipher.update(JSON.stringify(claims)), cipher.final()]);
    return [
      header,
      ...[encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url')),
    ].join('.');
  };
  const garbage = (): Buffer => {
    const octets = randomBytes(512);
    octets[0] = 0x7f & Number(octets[0]);
    return octets;
  };
  const kinds: Record<string, () => string> = {
    'OAEP failure': () => seal(garbage()),
    'tag failure': () => seal(wrap(randomBytes(32))),
    'CEK of 16 octets': () => seal(wrap(randomBytes(16))),
  };
  const names = Object.keys(kinds);
  const pools = Object.fromEntries(
    Object.entries(kinds).map(([name, make]) => [name, Array.from({ length: 50 }, make)]),
  );
  const times: Record<string, number[]> = Object.fromEntries(names.map((name) => [name, []]));
  const verifier = new JWETokenVerifier({ keys: privateJwk });
  let accepted = 0;
  const operations = await countRsa(async () => {
    for (let i = 0; i < samples; i += 1) {
      for (const name of names.toSorted(() => Math.random() - 0.5)) {
        const one = pools[name]?.[i % 50] ?? '';
        const start = performance.now();
        await verifier.authenticate(one).then(
          () => {
            accepted += 1;
          },
          () => {},
        );
        times[name]?.push(performance.now() - start);
      }
    }
  });
  expect('operations for refusals of three kinds', operations, 3 * samples);
  expect('forged tokens accepted', accepted, 0);
  // dudect's cropping: above the threshold there is the operating system, not the library.
  const threshold =
    Object.values(times)
      .flat()
      .toSorted((a, b) => a - b)[Math.floor(samples * 3 * 0.9)] ?? Infinity;
  const cropped = Object.fromEntries(
    names.map((name) => [name, (times[name] ?? []).filter((time) => time <= threshold)]),
  );
  for (const [i, name] of names.entries()) {
    const other = names[(i + 1) % names.length] ?? '';
    const [a, b] = [cropped[name] ?? [], cropped[other] ?? []];
    const t = welch(a, b);
    rows.push({
      what: `refusal: ${name}, ${samples} of them`,
      figure: `${round(median(a))} ms`,
      against: `${other} ${round(median(b))} ms`,
      ratio: median(a) / median(b),
      target: `Welch |t| < 4.5: ${t.toFixed(1)}`,
      met: Math.abs(t) < 4.5,
    });
  }
}

// ## The table

const parts: Record<string, () => Promise<void>> = { cold, calls, known, overload, startUp, refusals };
for (const [name, part] of Object.entries(parts)) {
  if (only && !only.includes(name)) continue;
  note(`${name} …`);
  await part();
}

const versionOf = (name: string): string =>
  `${name} ${JSON.parse(readFileSync(join(root, 'node_modules', name, 'package.json'), 'utf8')).version}`;
const machine = {
  date: new Date().toISOString().slice(0, 10),
  machine: `${cpus()[0]?.model.trim()}, ${availableParallelism()} cores, ${round(totalmem() / 2 ** 30)} GiB, ${process.platform} ${process.arch}`,
  versions: [
    `Node ${process.versions.node}`,
    `OpenSSL ${process.versions.openssl}`,
    ...['jose', 'fast-jwt', '@modelcontextprotocol/express', 'express', 'autocannon'].map(versionOf),
  ].join(', '),
  command: `npm run bench${short ? ' -- --short' : ''}`,
};
const head = ['what', 'measured', 'against', 'ratio', 'target', ''];
const cells = rows.map(({ what, figure, against = '', ratio, target = '', met }) => [
  what,
  figure,
  against,
  ratio === undefined ? '' : ratio.toFixed(2),
  target,
  met === undefined ? '' : met ? 'met' : 'MISSED',
]);
if (flags.has('--json')) {
  console.log(JSON.stringify({ ...machine, rows, wrong }, undefined, 2));
} else if (flags.has('--markdown')) {
  console.log(Object.values(machine).join(' · '));
  console.log(
    [
      '',
      `| ${head.join(' | ')} |`,
      `|${head.map(() => '---').join('|')}|`,
      ...cells.map((row) => `| ${row.join(' | ')} |`),
    ].join('\n'),
  );
} else {
  const widths = head.map((title, i) => Math.max(title.length, ...cells.map((row) => (row[i] ?? '').length)));
  console.log(
    Object.entries(machine)
      .map(([name, value]) => `${name}: ${value}`)
      .join('\n'),
    '\n',
  );
  for (const row of [head, ...cells])
    console.log(
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    );
}
for (const line of wrong) note(`wrong: ${line}`);
process.exitCode = wrong.length > 0 ? 1 : 0;
