// The bench's rows without a server: new, known and malformed tokens, the import, and the time that refusals take.
import { spawnSync } from 'node:child_process';
import {
  constants,
  createCipheriv,
  createHash,
  createPublicKey,
  publicEncrypt,
  randomBytes,
  webcrypto,
} from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { createVerifier } from 'fast-jwt';
import { compactDecrypt as joseDecrypt, importJWK, jwtVerify } from 'jose';
import { compactDecrypt, JWETokenVerifier } from 'mcp-auth-middleware';
import { Bench } from 'tinybench';
import { countRsa } from '../test/support/rsa.js';
import { root } from '../test/support/support.js';
import { claims, mint, privateJwk, privatePem, publicJwk, sign, signing, token, verifierOf } from './bench-keys.js';
import { compare, expect, inTurns, median, perSecond, round, rows, short } from './bench-rows.js';

// ## New tokens: RSA is the whole cost

/** Operations/s that the linked library does in one thread a core, without anything around. */
async function rsaCapacity(): Promise<number> {
  const workerData = { pem: privatePem, seconds: short ? 0.3 : 1 };
  const workers = Array.from(
    { length: availableParallelism() },
    () => new Worker(new URL('./bench-rsa.js', import.meta.url), { workerData }),
  );
  const rates = await Promise.all(workers.map(async (worker) => Number((await once(worker, 'message'))[0])));
  return rates.reduce((sum, rate) => sum + rate, 0);
}

/** The same off the event loop, as the library and jose do it, in as many lanes as there are here. */
async function subtleCapacity(): Promise<number> {
  const { subtle } = webcrypto;
  const algorithm = { name: 'RSA-OAEP', hash: 'SHA-256' };
  const encryptedKey = Buffer.from(token.split('.')[1] ?? '', 'base64url');
  const { kid: _kid, iat: _iat, ...jwk } = privateJwk;
  const end = performance.now() + (short ? 300 : 1500);
  let done = 0;
  const lane = async (): Promise<void> => {
    const key = await subtle.importKey('jwk', jwk, algorithm, false, ['decrypt']);
    for (; performance.now() < end; done += 1) await subtle.decrypt(algorithm, key, encryptedKey);
  };
  const start = performance.now();
  await Promise.all(Array.from({ length: Math.min(3, availableParallelism() + 1) }, lane));
  return done / ((performance.now() - start) / 1000);
}

/** The same by openssl's own measurement; NaN without one. It may be another version than the runtime links. */
async function opensslSpeed(): Promise<number> {
  const args = ['speed', '-seconds', '1', '-multi', String(availableParallelism()), 'rsa4096'];
  const { stdout } = spawnSync('openssl', args, { encoding: 'utf8' });
  return Number(/^rsa 4096 bits +\S+s +\S+s +([\d.]+)/m.exec(stdout ?? '')?.[1]);
}

const opensslVersion = (): string =>
  spawnSync('openssl', ['version'], { encoding: 'utf8' }).stdout.split(' ').slice(0, 2).join(' ');

// Two seconds of them: the first operations in each lane, and the last with no others beside them, count little.
const NEW_TOKENS = short ? 40 : 900;
const AT_A_TIME = 32;

/** How many of these tokens one can open in a second. */
async function rateOf(tokens: string[], open: (token: string) => Promise<unknown>): Promise<number> {
  await Promise.all(Array.from({ length: 8 }, () => open(token)));
  const queue = tokens.values();
  const start = performance.now();
  const worker = async (): Promise<void> => {
    for (const one of queue) await open(one);
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, worker));
  return tokens.length / ((performance.now() - start) / 1000);
}

async function authenticateAll(tokens: string[]): Promise<number> {
  const verifier = verifierOf();
  let rate = 0;
  const operations = await countRsa(async () => {
    rate = await rateOf(tokens, (one) => verifier.authenticate(one));
  });
  expect('operations for new tokens', operations, tokens.length + 1);
  const again = await countRsa(() => Promise.all(tokens.map((one) => verifier.authenticate(one))));
  expect('operations for the same tokens again', again, 0);
  return rate;
}

export async function cold(): Promise<void> {
  const tokens = await Promise.all(Array.from({ length: NEW_TOKENS }, (_, i) => mint(i)));
  const joseKey = await importJWK({ ...privateJwk }, 'RSA-OAEP-256');
  const { ours, plain, jose, rsa, subtle, openssl } = await inTurns(short ? 1 : 9, {
    ours: () => authenticateAll(tokens),
    plain: () => rateOf(tokens, (one) => compactDecrypt(one, privateJwk)),
    jose: () => rateOf(tokens, (one) => joseDecrypt(one, joseKey)),
    rsa: rsaCapacity,
    subtle: subtleCapacity,
    openssl: opensslSpeed,
  });
  const what = 'new tokens, authenticate';
  const first = `${what} (RSA-4096, ${AT_A_TIME} at a time)`;
  const [beside, on] = [{ against: 'jose compactDecrypt' }, ' on 2 cores'];
  compare({ what: first, ...beside, main: true, label: 'New tokens, beside jose' }, ours, jose, 1.7, on);
  compare({ what: 'new tokens, compactDecrypt', ...beside }, plain, jose, 1.7, on);
  const against = 'bare RSA of the runtime, a thread a core';
  compare({ what, against, main: true, label: 'New tokens, beside bare RSA on every core' }, ours, rsa, 0.9);
  compare({ what, against: 'bare subtle.decrypt of the runtime, in as many lanes' }, ours, subtle);
  if (!openssl.every((rate) => rate > 0)) return;
  const version = opensslVersion();
  const isLinked = version === `OpenSSL ${process.versions.openssl.split('+')[0]}`;
  const speed = `openssl speed -multi ${availableParallelism()} rsa4096 (${version})`;
  compare({ what, against: speed }, ours, openssl, isLinked ? 0.9 : undefined);
}

// ## Known and malformed tokens

const CALLS = 100; // a call takes less than tinybench's own look at the clock, so a task makes many of them

const malformed: Record<string, string> = {
  'no JSON': `AAAA${token}`,
  'a header cut short': token.replace(/.{4}\./, '.'),
  'a wrong length': `${token}A`,
  whitespace: ` ${token}`,
};

/** Those that jose refuses without an RSA operation, too. */
const JUDGED_BY_HEADER = ['no JSON', 'a header cut short'];

/** What the others do with a signed token, by name, and ours with a known and a malformed one. */
async function callTasks(): Promise<Record<string, () => unknown>> {
  const verifier = verifierOf();
  await verifier.authenticate(token);
  const tasks: Record<string, () => unknown> = { hit: () => verifier.authenticate(token) };
  for (const [name, one] of Object.entries(malformed)) {
    tasks[name] = () => verifier.authenticate(one).catch(() => {});
  }
  const key = signing.publicKey.export({ format: 'pem', type: 'spki' });
  for (const alg of ['RS256', 'RS512']) {
    const jwt = await sign(alg);
    for (const cache of [true, false]) {
      const verify = createVerifier({ key, cache, allowedIss: 'issuer', allowedAud: 'audience' });
      tasks[`fast-jwt ${alg}${cache ? ' cached' : ''}`] = () => verify(jwt);
    }
  }
  const rs256 = await sign('RS256');
  tasks['jose RS256'] = () => jwtVerify(rs256, signing.publicKey, { issuer: 'issuer', audience: 'audience' });
  const joseKey = await importJWK({ ...privateJwk }, 'RSA-OAEP-256');
  for (const name of JUDGED_BY_HEADER) {
    tasks[`jose ${name}`] = () => joseDecrypt(malformed[name] ?? '', joseKey).catch(() => {});
  }
  tasks['SHA-256'] = () => createHash('sha256').update(token).digest('base64url');
  return tasks;
}

/** Calls/s of each task. */
async function callRates(): Promise<(name: string) => number> {
  const bench = new Bench({ time: short ? 20 : 2000, warmupTime: short ? 5 : 300 });
  for (const [name, call] of Object.entries(await callTasks())) {
    bench.add(name, async () => {
      for (let i = 0; i < CALLS; i += 1) await call();
    });
  }
  expect('operations for known and malformed tokens', await countRsa(() => bench.run()), 0);
  return (name) => {
    const result = bench.getTask(name)?.result;
    return result && 'latency' in result ? (1000 * CALLS) / result.latency.mean : NaN;
  };
}

const charted = new Map([
  ['fast-jwt RS256 cached', 'Known tokens, beside fast-jwt with its cache (RS256)'],
  ['fast-jwt RS256', 'Known tokens, beside fast-jwt (RS256)'],
  ['jose RS256', 'Known tokens, beside jose (RS256)'],
]);

export async function calls(): Promise<void> {
  const rate = await callRates();
  const [what, hit] = ['known token, authenticate', rate('hit')];
  rows.push({
    what,
    figure: `${round(1e6 / hit)} µs`,
    against: 'its SHA-256 alone',
    reference: `${round(1e6 / rate('SHA-256'))} µs`,
    ratio: rate('SHA-256') / hit,
    target: '< 5 µs',
    met: 1e6 / hit < 5,
    main: true,
  });
  const others = ['RS256 cached', 'RS512 cached', 'RS256', 'RS512'].map((kind) => `fast-jwt ${kind}`);
  for (const against of [...others, 'jose RS256']) {
    const [label, other] = [charted.get(against), rate(against)];
    const row = { what, figure: perSecond(hit), against, reference: perSecond(other), ratio: hit / other };
    rows.push({ ...row, ...(label && { label }), ...(against === 'jose RS256' && { main: true }) });
  }
  for (const [i, name] of Object.keys(malformed).entries()) {
    const refused = { what: `malformed token (${name}), refused`, figure: perSecond(rate(name)) };
    const met = rate(name) >= 50_000;
    const jose = rate(`jose ${name}`);
    const beside = { against: 'jose compactDecrypt', reference: perSecond(jose), ratio: rate(name) / jose };
    const target = { target: '≥ 50,000/s per core', met };
    rows.push({ ...refused, ...(jose > 0 && beside), ...target, ...(i === 0 && { main: true }) });
  }
}

// ## Start

export async function startUp(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'bench-'));
  const write = (name: string, program: string): string => {
    writeFileSync(join(folder, name), program);
    return join(folder, name);
  };
  const file = join(root, 'dist/mcp-auth.js');
  const statements = readFileSync(file, 'utf8').matchAll(/^(?:import|\}) .*from ('node:[a-z_/]+');$/gm);
  const imports = [...statements].map(([, name]) => name);
  expect('some of Node’s modules are imported', imports.length > 5, true);
  const time = (file: string) => async (): Promise<number> => {
    const program = `
      const start = performance.now();
      await import(${JSON.stringify(pathToFileURL(file).href)});
      process.stdout.write(String(performance.now() - start));`;
    return Number(spawnSync(process.execPath, ['--input-type=module', '-e', program], { encoding: 'utf8' }).stdout);
  };
  const sides = await inTurns(short ? 3 : 31, {
    library: time(file),
    empty: time(write('empty.mjs', 'export {};')),
    node: time(write('node.mjs', imports.map((name) => `import ${name};`).join('\n'))),
    jose: time(createRequire(import.meta.url).resolve('jose')),
  });
  rmSync(folder, { recursive: true });
  rows.push({
    what: 'import of dist/mcp-auth.js',
    figure: `${round(median(sides.library))} ms`,
    against: 'an empty module, Node’s own that it imports, and jose',
    reference: [sides.empty, sides.node, sides.jose].map((times) => `${round(median(times))} ms`).join(', '),
    target: '< 8 ms more',
    met: median(sides.library) - median(sides.empty) < 8,
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

const [header = ''] = token.split('.');

/** A token of the right form around this encrypted key, whose ciphertext another key has sealed. */
function seal(encryptedKey: Buffer): string {
  const [cek, iv] = [randomBytes(32), randomBytes(12)];
  const cipher = createCipheriv('aes-256-gcm', cek, iv).setAAD(Buffer.from(header));
  const ciphertext = Buffer.concat([cipher.update(JSON.stringify(claims)), cipher.final()]);
  const parts = [encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'));
  return [header, ...parts].join('.');
}

function forgeries(): Record<string, string[]> {
  const key = createPublicKey({ key: { ...publicJwk }, format: 'jwk' });
  const wrap = (cek: Buffer): Buffer =>
    publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' }, cek);
  const garbage = (): Buffer => {
    const octets = randomBytes(512);
    octets[0] = 0x7f & Number(octets[0]); // below the modulus
    return octets;
  };
  const kinds = {
    'OAEP failure': garbage,
    'tag failure': () => wrap(randomBytes(32)),
    'CEK of 16 octets': () => wrap(randomBytes(16)),
  };
  return Object.fromEntries(
    Object.entries(kinds).map(([name, make]) => [name, Array.from({ length: 50 }, () => seal(make()))]),
  );
}

/** How many milliseconds each refusal took, the kinds in a random order in each round. */
async function refusalTimes(samples: number): Promise<Record<string, number[]>> {
  const pools = forgeries();
  const times: Record<string, number[]> = Object.fromEntries(Object.keys(pools).map((name) => [name, []]));
  const verifier = new JWETokenVerifier({ keys: privateJwk });
  let accepted = 0;
  const judge = async (name: string, one: string): Promise<void> => {
    const start = performance.now();
    const isAccepted = await verifier.authenticate(one).then(
      () => true,
      () => false,
    );
    times[name]?.push(performance.now() - start);
    if (isAccepted) accepted += 1;
  };
  const operations = await countRsa(async () => {
    for (let i = 0; i < samples; i += 1) {
      for (const name of Object.keys(pools).toSorted(() => Math.random() - 0.5)) {
        await judge(name, pools[name]?.[i % 50] ?? '');
      }
    }
  });
  expect('operations for refusals of three kinds', operations, 3 * samples);
  expect('forged tokens accepted', accepted, 0);
  return times;
}

export async function refusals(): Promise<void> {
  const samples = short ? 20 : 1500;
  const times = await refusalTimes(samples);
  // dudect's cropping: above the threshold there is the operating system, not the library.
  const all = Object.values(times)
    .flat()
    .toSorted((a, b) => a - b);
  const threshold = all[Math.floor(all.length * 0.9)] ?? Infinity;
  const cropped = Object.entries(times).map(
    ([name, values]) => [name, values.filter((time) => time <= threshold)] as const,
  );
  for (const [i, [name, a]] of cropped.entries()) {
    const [against, b] = cropped[(i + 1) % cropped.length] ?? ['', []];
    const t = welch(a, b);
    rows.push({
      what: `refusal: ${name}, ${samples} of them`,
      figure: `${round(median(a))} ms`,
      against,
      reference: `${round(median(b))} ms`,
      ratio: median(a) / median(b),
      target: `Welch |t| < 4.5: ${t.toFixed(1)}`,
      met: Math.abs(t) < 4.5,
    });
  }
}
