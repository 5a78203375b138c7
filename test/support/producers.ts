// The libraries that make tokens in the field, behind one interface: a list of jobs in, a list of texts out.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as jose from 'jose';
import nodeJose from 'node-jose';
import type { Jwk } from 'mcp-auth-middleware';
import { root, run } from './support.js';
import { untyped } from './tokens.js';

/** A token to make. */
export interface Sealing {
  /** The recipient's public key; without kid and alg unless `careless`. */
  key: Jwk;
  header: { alg: string; enc: string; kid?: string | undefined; cty?: string; zip?: string };
  claims: object;
  /** Makes the plaintext a JWT, signed with this private key. */
  sign?: { key: Jwk; header: { alg: string; kid: string } };
  /** Takes the library's default wherever it has one: what a user gets who says no more than necessary. */
  careless?: true;
}
/** A token to read, with the private key. */
export interface Opening {
  key: Jwk;
  open: string;
}
export type Job = Sealing | Opening;

export interface Producer {
  name: string;
  /** Undefined where the library is not installed. */
  version: string | undefined;
  /** Debian's package, where there is one in Debian 12: CI must have it. */
  debian?: string;
  /** The signature algorithms it has of those that the server knows. */
  signs: readonly string[];
  /** What else it has. `defaults`: some that matter for `careless`. `untyped nesting`: nested tokens without `cty`. */
  has: readonly ('opening' | 'zip' | 'defaults' | 'untyped nesting')[];
  perform(jobs: readonly Job[]): Promise<string[]>;
}

const SIGNATURES = ['RS256', 'PS256', 'ES256', 'EdDSA'];
const versionOf = (name: string): string =>
  JSON.parse(readFileSync(join(root, 'node_modules', name, 'package.json'), 'utf8')).version;
const each =
  (perform: (job: Job) => Promise<string>) =>
  (jobs: readonly Job[]): Promise<string[]> =>
    Promise.all(jobs.map(perform));

// ## In this process
// ------------------

async function withJose(job: Job): Promise<string> {
  if ('open' in job) {
    const privateKey = await jose.importJWK(untyped(job.key), jose.decodeProtectedHeader(job.open).alg);
    return new TextDecoder().decode((await jose.compactDecrypt(job.open, privateKey)).plaintext);
  }
  const { header, claims, sign } = job;
  const publicKey = await jose.importJWK(untyped(job.key), header.alg);
  if (!sign) return new jose.EncryptJWT({ ...claims }).setProtectedHeader(untyped(header)).encrypt(publicKey);
  const signingKey = await jose.importJWK(untyped(sign.key), sign.header.alg);
  const inner = await new jose.SignJWT({ ...claims }).setProtectedHeader(sign.header).sign(signingKey);
  const plaintext = new TextEncoder().encode(inner);
  return new jose.CompactEncrypt(plaintext).setProtectedHeader(untyped(header)).encrypt(publicKey);
}

async function withNodeJose(job: Job): Promise<string> {
  const key = await nodeJose.JWK.asKey(job.key);
  if ('open' in job) return (await nodeJose.JWE.createDecrypt(key).decrypt(job.open)).plaintext.toString();
  const { claims, sign, careless } = job;
  let content = Buffer.from(JSON.stringify(claims)); // of a string it would keep one octet a character
  // Without options it makes JSON instead of the compact form, and says A128CBC-HS256.
  if (careless) return JSON.stringify(await nodeJose.JWE.createEncrypt(key).update(content).final());
  if (sign) {
    const signer = { key: await nodeJose.JWK.asKey(sign.key), header: sign.header, reference: false };
    const signing = nodeJose.JWS.createSign({ format: 'compact' }, untyped(signer)).update(content);
    content = Buffer.from(untyped<string>(await signing.final()));
  }
  const { alg, enc: contentAlg, zip, ...fields } = job.header;
  const recipient = { key, header: { alg }, reference: false };
  const options = { format: 'compact', contentAlg, fields, ...(zip ? { zip: true } : {}) } as const;
  return nodeJose.JWE.createEncrypt(options, untyped(recipient)).update(content).final();
}

/** What the Python package's browser client does: WebCrypto by hand, and no more header than it must have. */
async function withWebCrypto(job: Job): Promise<string> {
  if ('open' in job) throw new Error('the browser client only makes tokens');
  const { subtle } = globalThis.crypto;
  const base64url = (octets: ArrayBuffer | Uint8Array): string =>
    Buffer.from(new Uint8Array(octets)).toString('base64url');
  const hash = job.header.alg === 'RSA-OAEP' ? 'SHA-1' : 'SHA-256';
  const { kty, n, e } = job.key;
  const jwk = untyped<JsonWebKey>({ kty, n, e });
  const publicKey = await subtle.importKey('jwk', jwk, { name: 'RSA-OAEP', hash }, false, ['encrypt']);
  const contentKey = crypto.getRandomValues(new Uint8Array(32));
  const encryptedKey = await subtle.encrypt({ name: 'RSA-OAEP' }, publicKey, contentKey);
  const aes = await subtle.importKey('raw', contentKey, 'AES-GCM', false, ['encrypt']);
  const iv = crypto.getRandomValues(new Uint8Array(12));
  const header = base64url(new TextEncoder().encode(JSON.stringify(job.header)));
  const algorithm = { name: 'AES-GCM', iv, additionalData: new TextEncoder().encode(header), tagLength: 128 };
  const sealed = await subtle.encrypt(algorithm, aes, new TextEncoder().encode(JSON.stringify(job.claims)));
  return [header, ...[encryptedKey, iv, sealed.slice(0, -16), sealed.slice(-16)].map(base64url)].join('.');
}

// ## In other languages
// ---------------------

/** What a program prints, or undefined where it is not installed or fails. */
async function outputOf(command: string, args: readonly string[]): Promise<string | undefined> {
  const { code, stdout } = await run(command, args).catch(() => ({ code: 1, stdout: '' }));
  return code === 0 ? stdout.trim() : undefined;
}

/** Gives the jobs to a program as JSON. */
async function performWith(command: string, args: readonly string[], jobs: readonly Job[]): Promise<string[]> {
  const { code, stdout, stderr } = await run(command, args, { input: JSON.stringify(jobs) });
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout);
}
const program = (name: string): string => join(root, 'test/support/producers', name);

/** The Python that has a library, and its version: $PYTHON, the one on PATH or Debian's. */
export async function pythonWith(name: string): Promise<{ interpreter: string; version: string } | undefined> {
  const script = `import ${name}, importlib.metadata; print(importlib.metadata.version("${name}"))`;
  for (const interpreter of [process.env.PYTHON, 'python3', '/usr/bin/python3']) {
    const version = interpreter === undefined ? undefined : await outputOf(interpreter, ['-c', script]);
    if (interpreter !== undefined && version !== undefined) return { interpreter, version };
  }
  return undefined;
}

async function python(name: string, rest: Pick<Producer, 'debian' | 'has'>): Promise<Producer> {
  const found = await pythonWith(name);
  const args = ['-W', 'ignore', program(`made_with_${name}.py`)];
  const perform = (jobs: readonly Job[]): Promise<string[]> => performWith(found?.interpreter ?? 'python3', args, jobs);
  return { name: `${name} (Python)`, version: found?.version, signs: SIGNATURES, ...rest, perform };
}

/** The command of the C library rhonabwy, a process for each token. Its keys are files. */
async function withRnbyc(job: Job): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
  const file = (name: string, key: Jwk): string => {
    writeFileSync(join(folder, name), JSON.stringify({ keys: [key] }), { mode: 0o600 });
    return join(folder, name);
  };
  const call = async (args: readonly string[]): Promise<string> => {
    const { code, stdout, stderr } = await run('rnbyc', args);
    if (code !== 0) throw new Error(`rnbyc: ${stderr}`);
    return stdout.trim();
  };
  try {
    if ('open' in job) {
      const shown = await call(['-t', job.open, '-K', file('private.json', job.key)]);
      return shown.slice(shown.indexOf('{'));
    }
    const { header, sign, careless } = job;
    const key = { ...job.key, ...(header.kid === undefined ? {} : { kid: header.kid }) };
    const args = ['-s', JSON.stringify(job.claims), '-P', file('public.json', key), '-l', header.alg];
    if (!careless) args.push('-e', header.enc);
    if (sign) args.push('-a', sign.header.alg, '-K', file('signing.json', sign.key));
    return await call(args);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

// ## All of them
// --------------

/** In the order of the matrix. */
export const producers: readonly Producer[] = [
  {
    name: 'jose (Node)',
    version: versionOf('jose'),
    signs: SIGNATURES,
    has: ['opening', 'untyped nesting'],
    perform: each(withJose),
  },
  {
    name: 'node-jose (Node)',
    version: versionOf('node-jose'),
    signs: ['RS256', 'PS256', 'ES256'],
    has: ['opening', 'zip', 'defaults', 'untyped nesting'],
    perform: each(withNodeJose),
  },
  await python('jwcrypto', { debian: 'python3-jwcrypto', has: ['opening', 'zip', 'defaults', 'untyped nesting'] }),
  await python('joserfc', { has: ['opening', 'zip', 'untyped nesting'] }),
  await python('authlib', { debian: 'python3-authlib', has: ['opening', 'zip', 'untyped nesting'] }),
  {
    name: 'Crypt::JWT (Perl)',
    version: await outputOf('perl', ['-MCrypt::JWT', '-e', 'print $Crypt::JWT::VERSION']),
    debian: 'libcrypt-jwt-perl',
    signs: SIGNATURES,
    has: ['opening', 'zip', 'untyped nesting'],
    perform: (jobs) => performWith('perl', [program('made_with_crypt_jwt.pl')], jobs),
  },
  {
    name: 'rnbyc of rhonabwy (C)',
    version: await outputOf('rnbyc', ['--version']),
    debian: 'rnbyc',
    signs: SIGNATURES,
    has: ['opening', 'defaults'],
    perform: each(withRnbyc),
  },
  {
    name: "the Python package's browser client (WebCrypto)",
    version: process.version,
    signs: [],
    has: [],
    perform: each(withWebCrypto),
  },
];
