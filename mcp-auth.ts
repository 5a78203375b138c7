/*! mcp-auth-middleware - MIT License (c) 2026 The mcp-auth-middleware maintainers */
/**
 * Authentication for HTTP MCP servers: decrypts `Authorization: Bearer <JWE>` with the server's private RSA key and
 * hands the claims to any code handling the request. One file on `node:` modules alone; copy it or install it.
 *
 * What it guarantees: a handler runs inside the context of exactly the user its token names; every bad token is refused
 * with the same bytes, before the handler; private key members never leave this file.
 * What it does not: on the default level ("encrypted") claims are self-asserted, for whoever can read the public key can
 * mint any claims. Only `trustedIssuers` ("signed and encrypted") says who the user is. A stolen token works until it expires.
 * A request listener never sees `upgrade`, `connect` or `checkContinue` events: authenticate there by hand.
 * @module
 * @example
 * ```js
 * import { createServer } from 'node:http';
 * import { getUser, withAuth } from 'mcp-auth-middleware';
 *
 * createServer(withAuth((req, res) => {
 *   res.end(`Hello, ${getUser().name}!`);
 * }, { keyFile: '.keys/mcp-private.json' })).listen(3000);
 * ```
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import {
  constants,
  createCipheriv,
  createDecipheriv,
  createPrivateKey,
  createPublicKey,
  generateKeyPair as generateRsa,
  hash,
  type KeyObject,
  privateDecrypt,
  publicEncrypt,
  randomBytes,
  sign,
  verify,
  webcrypto,
} from 'node:crypto';
import { EventEmitter } from 'node:events';
import { closeSync, constants as files, fstatSync, openSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import { availableParallelism } from 'node:os';
import { promisify } from 'node:util';

// ## Types
// --------

/** Key management algorithms (RFC 7518 §4.3). The key says which one it takes. */
export type RsaAlg = 'RSA-OAEP-256' | 'RSA-OAEP';
/** Signature algorithms of nested tokens; EdDSA means Ed25519 and goes by both names (RFC 8037, RFC 9864). */
export type SignatureAlg = 'RS256' | 'PS256' | 'ES256' | 'EdDSA' | 'Ed25519';

/** A JSON Web Key (RFC 7517). `iat`, `nbf` and `exp` are NumericDates: seconds since the epoch. */
export interface Jwk {
  kty: string;
  kid?: string;
  alg?: string;
  use?: string;
  key_ops?: string[];
  n?: string;
  e?: string;
  d?: string;
  p?: string;
  q?: string;
  dp?: string;
  dq?: string;
  qi?: string;
  crv?: string;
  x?: string;
  y?: string;
  iat?: number;
  nbf?: number;
  exp?: number;
}
/** A JWK Set (RFC 7517 §5). */
export interface JwkSet {
  keys: Jwk[];
}
/** A public RSA key to encrypt to. */
export interface RsaPublicJwk extends Jwk {
  kty: 'RSA';
  n: string;
  e: string;
}
/** A private RSA key with its CRT members (RFC 7518 §6.3.2). */
export interface RsaPrivateJwk extends RsaPublicJwk {
  d: string;
  p: string;
  q: string;
  dp: string;
  dq: string;
  qi: string;
}
/** An issuer's private key: RSA, EC on P-256, or OKP Ed25519. */
export interface PrivateSigningJwk extends Jwk {
  d: string;
}

/** The JWE Protected Header of a token this file accepts (RFC 7516 §4). */
export interface JweHeader {
  alg: RsaAlg;
  enc: 'A256GCM';
  kid?: string;
  cty?: string;
  typ?: string;
  [parameter: string]: unknown;
}

/** The claims of a user: deep-frozen, null-prototype, so that a missing claim is `undefined` whatever its name. */
export interface AuthUser {
  readonly iss?: string;
  readonly sub?: string;
  readonly aud?: string | readonly string[];
  readonly jti?: string;
  readonly exp?: number;
  readonly nbf?: number;
  readonly iat?: number;
  readonly [claim: string]: unknown;
}

/** A verified token and what is known beside its claims. */
export interface Auth {
  readonly user: AuthUser;
  /** The token as it was received. Never log it. */
  readonly token: string;
  /** True when a trusted issuer signed the claims; false when they are self-asserted. */
  readonly signed: boolean;
  /** The trusted issuer whose key verified the signature. */
  readonly issuer?: string;
  /** `kid` of the key that decrypted the token. */
  readonly keyId: string;
  /** From `scope` (a space-separated string) or `scp` (a string or an array). */
  readonly scopes: readonly string[];
  /** NumericDate. */
  readonly expiresAt?: number;
}

/** What the MCP SDKs read from `req.auth`. `expiresAt` in seconds since the epoch; `extra` holds the claims. */
export interface AuthInfo {
  token: string;
  clientId: string;
  scopes: string[];
  expiresAt?: number;
  resource?: URL;
  resourceMetadataUrl?: string;
  extra: Record<string, unknown>;
}

/** An issuer whose signature counts. `audience` overrides {@link VerifierOptions.audience}. */
export interface TrustedIssuer {
  issuer: string;
  /** Its public keys, or where to fetch them: https, or http on a loopback host. */
  jwks: JwkSet | URL;
  audience?: string | string[] | undefined;
  algorithms?: SignatureAlg[] | undefined;
}

export interface VerifierOptions {
  /** Path of the private JWK Set. Default: the environment's MCP_KEY_FILE_PATH. */
  keyFile?: string | undefined;
  /** A private JWK Set, instead of a file. */
  keys?: JwkSet | RsaPrivateJwk | undefined;
  trustedIssuers?: TrustedIssuer[] | undefined;
  /** Makes `aud` mandatory: the token must name one of these. */
  audience?: string | string[] | undefined;
  /** Seconds that clocks may differ: 0 to 300, default 30. */
  clockTolerance?: number | undefined;
  /** Seconds since `iat`, which becomes mandatory. */
  maxTokenAge?: number | undefined;
  /** Default: true with `trustedIssuers`, else false. */
  requireExp?: boolean | undefined;
  /** Name of the claim that holds the user, e.g. `data`. Times, `iss` and `aud` stay outside it. */
  claimsMember?: string | undefined;
  cache?: false | { maxEntries: number } | undefined;
  /** RSA operations at once; the process's lanes are the upper limit. */
  concurrency?: number | undefined;
  /** New tokens that may wait for decryption, default 256. One more gets 503. */
  maxPending?: number | undefined;
  /** The clock, in seconds since the epoch. */
  now?: (() => number) | undefined;
}

export interface AuthOptions extends VerifierOptions {
  verifier?: JWETokenVerifier | undefined;
  jwksPath?: string | undefined;
  requiredClaims?: string[] | undefined;
  requiredScopes?: string[] | undefined;
  /** Lets requests without a token through, with an empty user. */
  anonymous?: boolean | undefined;
  /** Exact raw paths that need no token; one that is brought is ignored. */
  publicPaths?: string[] | undefined;
  /** Name of the header field with the token, default `authorization`. */
  tokenHeader?: string | undefined;
  /** Public URL of the MCP endpoint (RFC 9728). */
  resource?: string | undefined;
  authorizationServers?: string[] | undefined;
  openidConfiguration?: boolean | undefined;
  cors?: false | { origin: '*' | string[] } | undefined;
  /** Answers 404 when a session is used by another principal than opened it. Default true. */
  bindSessions?: boolean | undefined;
  onEvent?: ((event: AuthEvent) => void) | undefined;
}

/** What happened, for logs and metrics. Holds no token, no claim value and no key material. */
export interface AuthEvent {
  readonly type:
    'accepted' | 'rejected' | 'overloaded' | 'keys.loaded' | 'keys.failed' | 'issuer.fetched' | 'issuer.failed';
  readonly reason?: string;
  readonly status?: number;
  readonly keyId?: string;
  readonly issuer?: string;
  readonly cached?: boolean;
  /** New tokens waiting for decryption. */
  readonly pending?: number;
  readonly durationMs?: number;
}

// ## Errors
// ---------

/** Why a request is refused: the OAuth error code, the status and what the client is told. Constant texts only. */
const REFUSALS = {
  // One description for everything structural or cryptographic: a client, or an attacker, cannot tell them apart.
  malformed: ['invalid_token', 401, 'The access token is invalid'],
  unknown_key: ['invalid_token', 401, 'The access token is invalid'],
  undecryptable: ['invalid_token', 401, 'The access token is invalid'],
  signature: ['invalid_token', 401, 'The access token is invalid'],
  claims: ['invalid_token', 401, 'The access token is invalid'],
  expired: ['invalid_token', 401, 'The access token has expired'],
  not_yet_valid: ['invalid_token', 401, 'The access token is not valid yet'],
  issuer: ['invalid_token', 401, 'The access token is from another issuer'],
  audience: ['invalid_token', 401, 'The access token is for another audience'],
  no_token: ['invalid_token', 401, 'An access token is required'],
  insufficient_scope: ['insufficient_scope', 403, 'The access token lacks a required claim or scope'],
  duplicate_token: ['invalid_request', 400, 'More than one access token was sent'],
  origin: ['invalid_request', 403, 'This Origin is not allowed; the server sets which ones are with cors.origin'],
  method: ['invalid_request', 405, 'This document is read with GET or HEAD'],
  session: ['invalid_request', 404, 'Session not found'],
  gone: ['temporarily_unavailable', 503, 'The client has left'],
  overloaded: ['temporarily_unavailable', 503, 'Too many new access tokens are waiting; try again'],
  no_key: ['temporarily_unavailable', 503, 'No decryption key is valid at this time; try again'],
  issuer_unavailable: ['temporarily_unavailable', 503, 'The keys of the token issuer cannot be read; try again'],
} as const;
export type RefusalReason = keyof typeof REFUSALS;

/** A token or request that is refused. `message` is what the client is told; `reason` is for the operator's eyes. */
export class AuthError extends Error {
  override readonly name: string = 'AuthError';
  readonly code: 'invalid_request' | 'invalid_token' | 'insufficient_scope' | 'temporarily_unavailable';
  /** HTTP status. */
  readonly status: number;
  readonly reason: RefusalReason;
  /** With `insufficient_scope`: the names of the missing claims and scopes. */
  readonly missing: readonly string[];
  constructor(reason: RefusalReason, missing: readonly string[] = []) {
    const [code, status, message] = REFUSALS[reason];
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0; // a refusal is an answer, not a fault, and the stack is a third of what a malformed token costs
    super(message);
    Error.stackTraceLimit = stackTraceLimit;
    this.code = code;
    this.status = status;
    this.reason = reason;
    this.missing = missing;
  }
}

export type KeyErrorCode =
  | 'missing'
  | 'unreadable'
  | 'malformed'
  | 'public_only'
  | 'private'
  | 'unsupported'
  | 'weak'
  | 'inconsistent'
  | 'too_many'
  | 'expired'
  | 'option';

/** Bad configuration or key material. The message says what is wrong and what to do, and shows no private member. */
export class KeyError extends Error {
  override readonly name: string = 'KeyError';
  readonly code: KeyErrorCode;
  constructor(code: KeyErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

// ## Audit surface: bytes
// -----------------------

type JsonObject = Record<string, unknown>;

const MAX_TOKEN = 16_384; // octets, also Node's default limit for all header fields of a request
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }); // ignoreBOM keeps the BOM, and JSON.parse refuses it

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isString = (value: unknown): value is string => typeof value === 'string';
const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
const isNumber = (value: unknown): value is number => typeof value === 'number' && Number.isFinite(value);

/** Own members only, so that a polluted Object.prototype adds none. */
const withoutPrototype = <T extends object>(value: T): T => Object.assign(Object.create(null), value);

/** Node's decoder accepts anything; only text that encodes back to itself is canonical (RFC 4648 §3.5, §12). */
function decodeBase64url(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.toString('base64url') === text ? bytes : undefined;
}

/** A JSON object in strict UTF-8. Without a prototype, so that no inherited name is ever taken for a member. */
function parseObject(bytes: Uint8Array): JsonObject | undefined {
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0; // the stack of an error that nobody sees costs as much as the parsing
  try {
    const value: unknown = JSON.parse(utf8.decode(bytes));
    return isObject(value) ? Object.setPrototypeOf(value, null) : undefined;
  } catch {
    return undefined;
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
  }
}

// ## Audit surface: header
// ------------------------

interface CompactJwe {
  header: JweHeader;
  aad: Buffer;
  encryptedKey: Buffer;
  iv: Buffer;
  ciphertext: Buffer;
  tag: Buffer;
}

const OAEP = {
  'RSA-OAEP-256': { node: 'sha256', subtle: 'SHA-256' },
  'RSA-OAEP': { node: 'sha1', subtle: 'SHA-1' }, // OAEP needs no collision resistance of its hash (RFC 8017 §B.1)
} as const;
const isRsaAlg = (alg: unknown): alg is RsaAlg => alg === 'RSA-OAEP-256' || alg === 'RSA-OAEP';

/** Allow-lists the protected header. `jku`, `x5u`, `jwk`, `x5c` and `p2c` are never looked at, so never used. */
function parseJweHeader(segment: string): JweHeader | undefined {
  const bytes = decodeBase64url(segment);
  const header = bytes && parseObject(bytes);
  if (!header) return undefined;
  const { alg, enc, kid, cty, typ } = header;
  if (!isRsaAlg(alg) || enc !== 'A256GCM') return undefined;
  if ('zip' in header || 'crit' in header) return undefined; // no compression oracle, no extension (RFC 8725 §3.6, RFC 7516 §4.1.13)
  for (const text of [kid, cty, typ]) if (text !== undefined && !isString(text)) return undefined;
  return header as JweHeader;
}

/** Everything that can be refused without an RSA operation, but for what only the key knows. */
function parseJwe(jwe: unknown): CompactJwe {
  if (!isString(jwe) || jwe.length > MAX_TOKEN) throw new AuthError('malformed');
  const [first, second, third, fourth, fifth, sixth] = jwe.split('.', 6);
  // An IV of 12 octets has 16 characters, a tag of 16 has 22.
  if (!first || third?.length !== 16 || fifth?.length !== 22 || sixth !== undefined) throw new AuthError('malformed');
  const header = parseJweHeader(first);
  if (!header) throw new AuthError('malformed');
  const [encryptedKey, iv, ciphertext, tag] = [second, third, fourth, fifth].map((text) => decodeBase64url(text ?? ''));
  if (!encryptedKey || !iv || !ciphertext || !tag) throw new AuthError('malformed');
  return { header, aad: Buffer.from(first, 'ascii'), encryptedKey, iv, ciphertext, tag };
}

// ## Audit surface: keys
// ----------------------

interface PublicKey {
  alg: RsaAlg;
  modulusOctets: number;
  publicKey: KeyObject;
  publicJwk: Required<Pick<RsaPublicJwk, 'kty' | 'n' | 'e' | 'kid' | 'alg' | 'use'>>;
}

interface DecryptionKey extends PublicKey {
  kid: string;
  /** The private members and no others, for the lanes. */
  privateJwk: Jwk;
  /** One CryptoKey per lane: the runtime serializes the operations on one key. */
  lanes: Promise<webcrypto.CryptoKey>[];
  /** When it may be published: nbf, else iat, else at once. */
  start: number;
  /** When it stops decrypting. */
  exp: number;
  /** False once the key file no longer holds it. */
  live: boolean;
}

const PRIVATE_MEMBERS = ['d', 'p', 'q', 'dp', 'dq', 'qi'] as const;
const isPrivate = (jwk: object): boolean => PRIVATE_MEMBERS.some((member) => member in jwk);

/** A big-endian integer in canonical form: no leading zero octet (RFC 7518 §2, Base64urlUInt). */
function readUint(jwk: Jwk, member: 'n' | 'e' | (typeof PRIVATE_MEMBERS)[number], where: string): bigint {
  const text: unknown = jwk[member];
  const bytes = isString(text) ? decodeBase64url(text) : undefined;
  if (!bytes?.length || bytes[0] === 0) {
    throw new KeyError(
      'malformed',
      `${where}: "${member}" must be a base64url integer without padding or leading zeros; generate a new key`,
    );
  }
  return BigInt(`0x${bytes.toString('hex')}`);
}

/** What RSA keys of both kinds must be: 2048 to 8192 bits, e = 65537, no third prime. */
function readModulus(jwk: Jwk, where: string): { n: bigint; octets: number } {
  const n = readUint(jwk, 'n', where);
  const bits = n.toString(2).length;
  if (bits < 2048 || bits > 8192)
    throw new KeyError('weak', `${where}: the modulus has ${bits} bits; use 2048 to 8192 (the command generates 4096)`);
  if (n % 2n === 0n || readUint(jwk, 'e', where) !== 65537n)
    throw new KeyError('weak', `${where}: n must be odd and e must be 65537; generate a new key`);
  if ('oth' in jwk)
    throw new KeyError(
      'unsupported',
      `${where}: keys of more than two primes ("oth") are not supported; generate a new key`,
    );
  return { n, octets: Math.ceil(bits / 8) };
}

/** What `kty`, `use`, `key_ops` and `alg` say must agree with what the key is here for; absent `alg` means RSA-OAEP-256. */
function readPurpose(jwk: Jwk, operations: string[], where: string): RsaAlg {
  const { kty, use, key_ops: ops, alg = 'RSA-OAEP-256', kid } = jwk;
  if (kty !== 'RSA') throw new KeyError('unsupported', `${where}: "kty" must be RSA`);
  if (use !== undefined && use !== 'enc')
    throw new KeyError('unsupported', `${where}: "use" must be enc; a signing key cannot be an encryption key`);
  if (ops !== undefined && !(isStrings(ops) && ops.some((op) => operations.includes(op)))) {
    throw new KeyError('unsupported', `${where}: "key_ops" must include ${operations.join(' or ')}`);
  }
  if (!isRsaAlg(alg)) throw new KeyError('unsupported', `${where}: "alg" must be RSA-OAEP-256 or RSA-OAEP`);
  if (kid !== undefined && !isString(kid)) throw new KeyError('malformed', `${where}: "kid" must be a string`);
  return alg;
}

const THUMBPRINT_MEMBERS = new Map<string, (keyof Jwk)[]>([
  ['RSA', ['e', 'kty', 'n']],
  ['EC', ['crv', 'kty', 'x', 'y']],
  ['OKP', ['crv', 'kty', 'x']],
]);

/**
 * RFC 7638 thumbprint of an RSA, EC or OKP key: base64url of the SHA-256 of its required public members.
 * @throws KeyError when a member is missing
 */
export function jwkThumbprint(jwk: Jwk): string {
  const members = isObject(jwk) ? THUMBPRINT_MEMBERS.get(jwk.kty) : undefined;
  if (!members?.every((member) => isString(jwk[member])))
    throw new KeyError('malformed', 'A thumbprint needs an RSA, EC or OKP key with all its public members');
  return hash(
    'sha256',
    JSON.stringify(Object.fromEntries(members.map((member) => [member, jwk[member]]))),
    'base64url',
  );
}

/** Builds from n and e alone: what is published comes from the public key object, never from a private JWK less some members. */
function buildPublic(jwk: Jwk, alg: RsaAlg, modulusOctets: number): PublicKey {
  const publicKey = createPublicKey({ key: { kty: 'RSA', n: jwk.n ?? '', e: jwk.e ?? '' }, format: 'jwk' });
  const { n = '', e = '' } = publicKey.export({ format: 'jwk' });
  const kid = jwk.kid ?? jwkThumbprint({ kty: 'RSA', n, e });
  return { alg, modulusOctets, publicKey, publicJwk: { kty: 'RSA', n, e, kid, alg, use: 'enc' } };
}

function importPublic(jwk: Jwk, where: string): PublicKey {
  if (!isObject(jwk)) throw new KeyError('malformed', `${where}: must be a JWK, a JSON object`);
  if (isPrivate(jwk))
    throw new KeyError(
      'private',
      `${where}: is a private key; only its owner may hold it: use the public one (mcp-public.json, or the server's JWKS)`,
    );
  return buildPublic(jwk, readPurpose(jwk, ['encrypt', 'wrapKey'], where), readModulus(jwk, where).octets);
}

function readTimes(jwk: Jwk, where: string): { start: number; exp: number } {
  for (const time of ['iat', 'nbf', 'exp'] as const) {
    if (jwk[time] !== undefined && !isNumber(jwk[time]))
      throw new KeyError('malformed', `${where}: "${time}" must be a number of seconds since the epoch`);
  }
  return { start: jwk.nbf ?? jwk.iat ?? -Infinity, exp: jwk.exp ?? Infinity };
}

/** OpenSSL loads a key with a foreign d, or CRT members that do not belong together; such a key leaks or fails at work. */
function importPrivate(jwk: Jwk, where: string): DecryptionKey {
  const alg = readPurpose(jwk, ['decrypt', 'unwrapKey'], where);
  const { n, octets } = readModulus(jwk, where);
  if (!('d' in jwk))
    throw new KeyError('public_only', `${where}: is a public key; the server needs the private one (mcp-private.json)`);
  const [d, p, q, dp, dq, qi] = PRIVATE_MEMBERS.map((member) => readUint(jwk, member, where)) as [
    bigint,
    bigint,
    bigint,
    bigint,
    bigint,
    bigint,
  ];
  const consistent =
    p > 1n &&
    q > 1n &&
    p * q === n &&
    d < n &&
    qi < p &&
    dp === d % (p - 1n) &&
    dq === d % (q - 1n) &&
    (d * 65537n) % (p - 1n) === 1n &&
    (d * 65537n) % (q - 1n) === 1n &&
    (qi * q) % p === 1n;
  if (!consistent)
    throw new KeyError(
      'inconsistent',
      `${where}: its members do not belong together; restore it from a backup or generate a new key`,
    );
  const known = buildPublic(jwk, alg, octets);
  const { kid, n: modulus, e } = known.publicJwk;
  const members = Object.fromEntries(PRIVATE_MEMBERS.map((member) => [member, jwk[member]]));
  return {
    ...known,
    kid,
    privateJwk: { kty: 'RSA', n: modulus, e, ...members },
    lanes: [],
    ...readTimes(jwk, where),
    live: true,
  };
}

/** The keys of a JWK Set, or the one JWK, with a name for each to say which one is wrong. */
function* listKeys(set: unknown, where: string): Generator<[jwk: Jwk, where: string]> {
  const keys = isObject(set) && 'keys' in set ? set['keys'] : [set];
  if (!Array.isArray(keys) || keys.length === 0)
    throw new KeyError('malformed', `${where}: must be a JWK Set with at least one key`);
  for (const [index, jwk] of keys.entries()) {
    const which = keys.length === 1 ? where : `${where}: key ${index + 1}`;
    if (!isObject(jwk)) throw new KeyError('malformed', `${which}: must be a JWK, a JSON object`);
    yield [withoutPrototype(jwk) as unknown as Jwk, which];
  }
}

/** All keys of a set, and the limit: a forged token without `kid` costs one RSA operation a key. */
function importPrivateSet(set: unknown, where: string, now: number): DecryptionKey[] {
  const keys = [...listKeys(set, where)].map(([jwk, which]) => importPrivate(jwk, which));
  if (new Set(keys.map((key) => key.kid)).size < keys.length)
    throw new KeyError('malformed', `${where}: two keys have the same "kid"; rename or remove one`);
  for (const alg of Object.keys(OAEP)) {
    if (keys.filter((key) => key.alg === alg && now < key.exp).length > 4)
      throw new KeyError('too_many', `${where}: more than four unexpired ${alg} keys; remove the oldest`);
  }
  return keys;
}

/** The newest unexpired key whose time has come; when none has (a clock behind the generator's), the one that comes first. */
function activeKey<K extends { start: number; exp: number }>(keys: readonly K[], now: number): K | undefined {
  const usable = keys.filter((key) => now < key.exp);
  const [newest] = usable.filter((key) => key.start <= now).sort((a, b) => b.start - a.start);
  return newest ?? usable.sort((a, b) => a.start - b.start)[0];
}

function publish(keys: readonly Pick<DecryptionKey, 'start' | 'exp' | 'publicJwk'>[], now: number): JwkSet {
  const active = activeKey(keys, now);
  return { keys: active ? [{ ...active.publicJwk }] : [] };
}

const oaep = (key: PublicKey, half: KeyObject) => ({
  key: half,
  padding: constants.RSA_PKCS1_OAEP_PADDING,
  oaepHash: OAEP[key.alg].node,
});

/** Proves that the key decrypts what its public half encrypts, which no arithmetic on composite "primes" would. */
function selfTest(key: DecryptionKey, where: string): void {
  const probe = randomBytes(32);
  try {
    const privateKey = createPrivateKey({ key: { ...key.privateJwk }, format: 'jwk' });
    if (privateDecrypt(oaep(key, privateKey), publicEncrypt(oaep(key, key.publicKey), probe)).equals(probe)) return;
  } catch {
    /* OpenSSL's text says nothing to a user */
  }
  throw new KeyError(
    'inconsistent',
    `${where}: does not decrypt what it encrypts; restore it from a backup or generate a new key`,
  );
}

/**
 * The key a server would publish now (the newest unexpired one whose `nbf` has come), with public members only.
 * @param set private or public keys
 * @throws KeyError when the set holds anything but sound RSA encryption keys
 */
export function publicJwks(set: JwkSet | Jwk): JwkSet {
  const now = Date.now() / 1000;
  const keys = [...listKeys(set, 'JWK Set')];
  if (keys.some(([jwk]) => 'd' in jwk)) return publish(importPrivateSet(set, 'JWK Set', now), now);
  return publish(
    keys.map(([jwk, where]) => ({ ...importPublic(jwk, where), ...readTimes(jwk, where) })),
    now,
  );
}

const generateRsaPair = promisify(generateRsa);

/**
 * Makes an RSA pair off the main thread: seconds at 4096 bits.
 * @param options `modulusLength` in bits (4096), `alg` (RSA-OAEP-256)
 * @throws KeyError for a size or algorithm outside the lists
 */
export async function generateKeyPair(
  options: { modulusLength?: 2048 | 3072 | 4096; alg?: RsaAlg } = {},
): Promise<{ privateJwk: RsaPrivateJwk; publicJwk: RsaPublicJwk }> {
  const { modulusLength = 4096, alg = 'RSA-OAEP-256' } = options;
  if (![2048, 3072, 4096].includes(modulusLength))
    throw new KeyError('option', 'modulusLength must be 2048, 3072 or 4096');
  if (!isRsaAlg(alg)) throw new KeyError('option', 'alg must be RSA-OAEP-256 or RSA-OAEP');
  // Through DER: on Node 20 the JWK export of a fresh key can deadlock with the collector that frees the job which made it.
  const der = {
    publicKeyEncoding: { type: 'spki', format: 'der' },
    privateKeyEncoding: { type: 'pkcs8', format: 'der' },
  } as const;
  const { privateKey } = await generateRsaPair('rsa', { modulusLength, publicExponent: 65537, ...der });
  const exported = createPrivateKey({ key: privateKey, type: 'pkcs8', format: 'der' }).export({ format: 'jwk' });
  const { publicJwk, privateJwk } = importPrivate({ ...exported, kty: 'RSA', alg }, 'generated key');
  return {
    privateJwk: { ...privateJwk, ...publicJwk, iat: Math.floor(Date.now() / 1000) } as RsaPrivateJwk,
    publicJwk,
  };
}

// ## Audit surface: JWE
// ---------------------

/** What one verifier may use of the process's lanes, and does. */
interface Share {
  concurrency: number;
  running: number;
}
/** A place in the queue; `leave` says whether it was still one. */
interface Place {
  leave: () => boolean;
}
interface Ticket {
  share: Share;
  start: (lane: number) => void;
  cancel: (reason: AuthError) => void;
}

/** One limiter per process, for the thread pool is the process's; it leaves one thread of the pool for everyone else. */
const LANES = ((): number => {
  const setting = process.env['UV_THREADPOOL_SIZE'];
  const pool = setting === undefined ? 4 : Math.min(1024, Number.parseInt(setting, 10) || 1); // as libuv reads it
  return Math.max(1, Math.min(availableParallelism() + 1, pool - 1));
})();
const freeLanes: number[] = Array.from({ length: LANES }, (_, lane) => lane);
const tickets: Ticket[] = [];

function startTickets(): void {
  while (freeLanes.length > 0) {
    const index = tickets.findIndex(({ share }) => share.running < share.concurrency);
    const [ticket] = index < 0 ? [] : tickets.splice(index, 1);
    const lane = ticket && freeLanes.pop();
    if (!ticket || lane === undefined) return;
    ticket.share.running += 1;
    ticket.start(lane);
  }
}

/** Runs the task in a lane, first come first served. `leave` gives up a place in the queue (true if it still was one); `done` then rejects. */
function inLane<T>(share: Share, task: (lane: number) => Promise<T>): { done: Promise<T>; leave: () => boolean } {
  let ticket: Ticket | undefined;
  const turn = new Promise<number>((start, cancel) => tickets.push((ticket = { share, start, cancel })));
  startTickets();
  const done = turn.then(async (lane) => {
    try {
      return await task(lane);
    } finally {
      share.running -= 1;
      freeLanes.push(lane);
      startTickets();
    }
  });
  const leave = (): boolean => {
    const index = tickets.findIndex((other) => other === ticket);
    if (index >= 0) tickets.splice(index, 1)[0]?.cancel(new AuthError('gone'));
    return index >= 0;
  };
  return { done, leave };
}

/** RFC 7516 §11.5: a failed or wrong-sized unwrap goes on with a random CEK, so that only the tag decides. */
async function unwrapKey(key: DecryptionKey, encryptedKey: Buffer, lane: number): Promise<Buffer> {
  const random = randomBytes(32);
  const { subtle } = webcrypto; // off the event loop; node:crypto's privateDecrypt would block it for milliseconds
  const imported = (key.lanes[lane] ??= subtle.importKey(
    'jwk',
    withoutPrototype(key.privateJwk),
    { name: 'RSA-OAEP', hash: OAEP[key.alg].subtle },
    false,
    ['decrypt'],
  ));
  imported.catch(() => {
    delete key.lanes[lane];
  }); // one failure must not close the lane for good
  const cryptoKey = await imported;
  const cek = await subtle.decrypt({ name: 'RSA-OAEP' }, cryptoKey, new Uint8Array(encryptedKey)).then(
    (bytes) => Buffer.from(bytes),
    () => random,
  );
  return cek.length === 32 ? cek : random;
}

function openContent(jwe: CompactJwe, cek: Buffer): Buffer | undefined {
  const decipher = createDecipheriv('aes-256-gcm', cek, jwe.iv, { authTagLength: 16 }); // without it, 4-octet tags pass on Node 20 to 24
  decipher.setAAD(jwe.aad).setAuthTag(jwe.tag);
  const plaintext = decipher.update(jwe.ciphertext); // not looked at before final() has checked the tag
  try {
    decipher.final();
  } catch {
    return undefined;
  }
  return plaintext;
}

/** The keys a token may be for, the published one first. The encrypted key is exactly as long as the modulus (RFC 8017 §7.1.2). */
function candidateKeys(keys: readonly DecryptionKey[], jwe: CompactJwe, now: number): DecryptionKey[] {
  const { kid, alg } = jwe.header;
  const active = activeKey(keys, now);
  if (!active) throw new AuthError('no_key');
  const usable = keys.filter((key) => now < key.exp);
  const named = kid === undefined ? usable : usable.filter((key) => key.kid === kid);
  if (named.length === 0) throw new AuthError('unknown_key');
  const fitting = named.filter((key) => key.alg === alg && key.modulusOctets === jwe.encryptedKey.length);
  if (fitting.length === 0) throw new AuthError('malformed');
  return fitting.sort((a, b) => Number(b === active) - Number(a === active));
}

interface Opened {
  plaintext: Buffer;
  key: DecryptionKey;
}

/** A lane is held for the RSA operation alone. */
async function tryKeys(
  jwe: CompactJwe,
  keys: readonly DecryptionKey[],
  share: Share,
  place: Place,
): Promise<Opened | undefined> {
  for (const key of keys) {
    const { done, leave } = inLane(share, (lane) => unwrapKey(key, jwe.encryptedKey, lane));
    place.leave = leave;
    const plaintext = openContent(jwe, await done);
    if (plaintext) return { plaintext, key };
  }
  return undefined;
}

const importedSets = new WeakMap<object, { text: string; keys: DecryptionKey[] }>();
const unlimited: Share = { concurrency: Infinity, running: 0 };

/**
 * Decrypts a JWE in compact serialization (RFC 7516 §7.1), RSA-OAEP-256 or RSA-OAEP as the key says, with A256GCM.
 * @param keys a private JWK, or a private JWK Set whose unexpired keys are tried
 * @throws AuthError (a rejection) the same for whatever is wrong with the token; KeyError for unsound keys
 */
export async function compactDecrypt(
  jwe: string,
  keys: RsaPrivateJwk | JwkSet,
): Promise<{ plaintext: Uint8Array; protectedHeader: JweHeader }> {
  const now = Date.now() / 1000;
  const text = JSON.stringify(keys) ?? '';
  let known = isObject(keys) ? importedSets.get(keys) : undefined; // the checks cost milliseconds, and the text says when they are due again
  if (known?.text !== text) {
    known = { text, keys: importPrivateSet(keys, 'JWK Set', now) };
    importedSets.set(keys, known);
  }
  const parsed = parseJwe(jwe);
  const candidates = candidateKeys(known.keys, parsed, now);
  const opened = await tryKeys(parsed, candidates, unlimited, { leave: () => false });
  if (!opened) throw new AuthError('undecryptable');
  return { plaintext: new Uint8Array(opened.plaintext), protectedHeader: parsed.header };
}

/**
 * Encrypts to a JWE in compact serialization, with A256GCM and the key's own algorithm.
 * @param jwk the recipient's public key
 * @param header `cty` and `typ` to say what the plaintext is
 * @throws KeyError for an unsound or a private key
 */
export function compactEncrypt(
  plaintext: Uint8Array,
  jwk: RsaPublicJwk,
  header: { cty?: string; typ?: string } = {},
): string {
  const key = importPublic(jwk, 'recipient');
  const { alg, kid } = key.publicJwk;
  const { cty, typ } = header;
  const aad = Buffer.from(JSON.stringify({ alg, enc: 'A256GCM', kid, cty, typ })).toString('base64url');
  const cek = randomBytes(32);
  const iv = randomBytes(12);
  const encryptedKey = publicEncrypt(oaep(key, key.publicKey), cek);
  const cipher = createCipheriv('aes-256-gcm', cek, iv, { authTagLength: 16 }).setAAD(Buffer.from(aad, 'ascii'));
  const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
  return [aad, ...[encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'))].join(
    '.',
  );
}

// ## Audit surface: JWS
// ---------------------

type BoundAlg = Exclude<SignatureAlg, 'Ed25519'>;
interface VerificationKey {
  kid: string;
  alg: BoundAlg;
  id: string;
  publicKey: KeyObject;
  /** False once its issuer withdrew it. */ live: boolean;
}
interface CompactJws {
  alg: BoundAlg;
  kid: string | undefined;
  signingInput: Buffer;
  payload: Buffer;
  signature: Buffer;
}

/** Which key a signature algorithm takes and how (RFC 7518 §3, RFC 8037). What is not here, `none` and HMAC above all, does not exist. */
const SIGNATURES = {
  RS256: { kty: 'RSA', crv: undefined, digest: 'sha256', options: { padding: constants.RSA_PKCS1_PADDING } },
  PS256: {
    kty: 'RSA',
    crv: undefined,
    digest: 'sha256',
    options: { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 },
  },
  ES256: { kty: 'EC', crv: 'P-256', digest: 'sha256', options: { dsaEncoding: 'ieee-p1363' } },
  EdDSA: { kty: 'OKP', crv: 'Ed25519', digest: null, options: {} },
} as const;
const BOUND_ALGS = Object.keys(SIGNATURES) as BoundAlg[];
const boundAlg = (alg: unknown): BoundAlg | undefined =>
  BOUND_ALGS.find((known) => known === (alg === 'Ed25519' ? 'EdDSA' : alg));

/** One key, one algorithm: its own `alg`, else the first that fits its type and is allowed. */
function signatureAlg(
  jwk: Jwk,
  operation: 'sign' | 'verify',
  algorithms: readonly SignatureAlg[] | undefined,
): BoundAlg | undefined {
  const { kty, crv, use, key_ops: ops, alg } = jwk;
  if ((use !== undefined && use !== 'sig') || (ops !== undefined && !(isStrings(ops) && ops.includes(operation))))
    return undefined;
  const allowed = algorithms?.map(boundAlg) ?? BOUND_ALGS;
  const fitting = BOUND_ALGS.filter(
    (name) => SIGNATURES[name].kty === kty && SIGNATURES[name].crv === crv && allowed.includes(name),
  );
  return alg === undefined ? fitting[0] : fitting.find((name) => name === boundAlg(alg));
}

/** Undefined for a key that is foreign, for encryption, private or unsound: an issuer's set may hold those, and they are skipped. */
function importVerificationKey(
  jwk: object,
  algorithms: readonly SignatureAlg[] | undefined,
): VerificationKey | undefined {
  const { kty, crv, n, e, x, y, kid } = jwk as Jwk;
  const alg = signatureAlg(jwk as Jwk, 'verify', algorithms);
  if (!alg || 'd' in jwk || (kid !== undefined && !isString(kid))) return undefined;
  const members = { RSA: { kty, n, e }, EC: { kty, crv, x, y }, OKP: { kty, crv, x } }[SIGNATURES[alg].kty];
  try {
    if (kty === 'RSA') readModulus(jwk as Jwk, 'issuer key');
    else if (![x, kty === 'EC' ? y : x].every((text) => decodeBase64url(text ?? '')?.length === 32)) return undefined;
    const publicKey = createPublicKey({ key: members as webcrypto.JsonWebKey, format: 'jwk' });
    const thumbprint = jwkThumbprint(members as Jwk);
    return { kid: kid ?? thumbprint, alg, id: `${alg} ${kid} ${thumbprint}`, publicKey, live: true };
  } catch {
    return undefined;
  }
}

function parseJws(bytes: Buffer): CompactJws {
  const [first, second, third, fourth] = bytes.toString('latin1').split('.', 4);
  const [head, payload, signature] = [first, second, third].map((text) => decodeBase64url(text ?? ''));
  const header = head && parseObject(head);
  if (!header || !payload || !signature || third === undefined || fourth !== undefined)
    throw new AuthError('signature');
  const alg = boundAlg(header['alg']);
  const { kid, cty } = header;
  // crit: no extension is understood (RFC 7515 §4.1.11). cty: a second nesting is never opened.
  if (!alg || 'crit' in header || cty !== undefined || (kid !== undefined && !isString(kid)))
    throw new AuthError('signature');
  return { alg, kid, signingInput: Buffer.from(`${first}.${second}`, 'latin1'), payload, signature };
}

function verifySignature(jws: CompactJws, key: VerificationKey): boolean {
  const { digest, options } = SIGNATURES[key.alg];
  try {
    return jws.alg === key.alg && verify(digest, jws.signingInput, { key: key.publicKey, ...options }, jws.signature);
  } catch {
    return false;
  }
}

const signOffThread = promisify(sign);

/** Signs off the event loop and checks the result: a private key whose public members are another's must not go unnoticed. */
async function compactSign(payload: Buffer, jwk: PrivateSigningJwk): Promise<string> {
  const { kty, n, e, crv, x, y, kid } = jwk;
  const alg = signatureAlg(jwk, 'sign', undefined);
  const key = alg && importVerificationKey({ kty, n, e, crv, x, y, kid, alg }, undefined);
  if (!key || !isString(jwk.d))
    throw new KeyError(
      'unsupported',
      'sign.key: must be a private JWK for signatures: RSA, EC on P-256 or OKP Ed25519',
    );
  const header = JSON.stringify({ alg, kid: key.kid, typ: 'JWT' });
  const signingInput = Buffer.from([Buffer.from(header), payload].map((part) => part.toString('base64url')).join('.'));
  const { digest, options } = SIGNATURES[key.alg];
  try {
    const signature = await signOffThread(digest, signingInput, {
      key: createPrivateKey({ key: { ...jwk }, format: 'jwk' }),
      ...options,
    });
    if (verifySignature({ alg: key.alg, kid: key.kid, signingInput, payload, signature }, key))
      return `${signingInput}.${signature.toString('base64url')}`;
  } catch {
    /* OpenSSL's text says nothing to a user */
  }
  throw new KeyError(
    'inconsistent',
    'sign.key: does not sign what its public members verify; restore it from a backup or generate a new key',
  );
}

// ## Audit surface: claims
// ------------------------

/** A frozen copy without prototypes; undefined beyond 32 levels or 1,000 values, or with a number JSON cannot carry (1e999). */
function freezeJson(value: unknown, budget: { nodes: number }, depth = 1): unknown {
  budget.nodes -= 1;
  if (budget.nodes < 0 || (typeof value === 'number' && !Number.isFinite(value))) throw new AuthError('claims');
  if (typeof value !== 'object' || value === null) return value;
  if (depth > 32) throw new AuthError('claims');
  if (Array.isArray(value)) return Object.freeze(value.map((item) => freezeJson(item, budget, depth + 1)));
  const copy: JsonObject = Object.setPrototypeOf({}, null); // unlike Object.create(null) not a slow dictionary for whoever reads a claim
  for (const [name, member] of Object.entries(value)) copy[name] = freezeJson(member, budget, depth + 1);
  return Object.freeze(copy);
}

/** The claims set (RFC 7519 §4) of an authenticated plaintext: types here, times and audience at every use. */
function readClaims(plaintext: Buffer): AuthUser {
  const object = parseObject(plaintext);
  if (!object) throw new AuthError('claims');
  const claims = freezeJson(object, { nodes: 1000 }) as AuthUser;
  const { exp, nbf, iat, aud, iss, sub, jti } = claims;
  const valid =
    [exp, nbf, iat].every((time) => time === undefined || isNumber(time)) &&
    [iss, sub, jti].every((text) => text === undefined || isString(text)) &&
    (aud === undefined || isString(aud) || isStrings(aud));
  if (!valid) throw new AuthError('claims');
  return claims;
}

interface ClaimRules {
  clockTolerance: number;
  maxTokenAge: number | undefined;
  requireExp: boolean;
}

function judgeTimes({ exp, nbf, iat }: AuthUser, rules: ClaimRules, now: number): void {
  const { clockTolerance, maxTokenAge, requireExp } = rules;
  if ((requireExp && exp === undefined) || (maxTokenAge !== undefined && iat === undefined))
    throw new AuthError('claims');
  if (exp !== undefined && now >= exp + clockTolerance) throw new AuthError('expired'); // "on or after" (RFC 7519 §4.1.4)
  if (exp !== undefined && iat !== undefined && exp <= iat) throw new AuthError('claims');
  if (nbf !== undefined && now < nbf - clockTolerance) throw new AuthError('not_yet_valid');
  if (iat !== undefined && now < iat - clockTolerance) throw new AuthError('not_yet_valid');
  if (maxTokenAge !== undefined && iat !== undefined && now - iat > maxTokenAge + clockTolerance)
    throw new AuthError('expired');
}

function judgeAudience({ aud }: AuthUser, expected: readonly string[]): void {
  const named: readonly string[] = isString(aud) ? [aud] : (aud ?? []);
  if (!named.some((one) => expected.includes(one))) throw new AuthError('audience');
}

/** Of a set the first key fit for encryption; a private key anywhere in it is refused, for its owner alone may hold it. */
function pickRecipient(recipient: RsaPublicJwk | JwkSet): RsaPublicJwk {
  const keys = [...listKeys(recipient, 'recipient')];
  const secret = keys.find(([jwk]) => isPrivate(jwk));
  let refusal: unknown;
  for (const [jwk, where] of secret ? [secret] : keys) {
    try {
      return importPublic(jwk, where).publicJwk;
    } catch (error) {
      refusal ??= error;
    }
  }
  throw refusal;
}

/**
 * Mints a token as a producer does: claims, encrypted to the server's public key, and signed before that with `sign`.
 * Sets `iat`, `exp` and `kid`, and with `sign` also `iss` and `aud`; claims given win.
 * @param options `expiresIn` in seconds (3600; null for no `exp`); `sign` with the issuer's private JWK, its name and the audience
 * @throws KeyError for an unsound or private recipient, or an unsound signing key; TypeError for claims no server would take
 */
export async function encryptToken(
  claims: object,
  recipient: RsaPublicJwk | JwkSet,
  options: {
    expiresIn?: number | null;
    sign?: { key: PrivateSigningJwk; issuer: string; audience: string | string[] };
  } = {},
): Promise<string> {
  const { expiresIn, sign: signing } = options;
  if (!isObject(claims)) throw new TypeError('claims must be an object');
  if (
    signing !== undefined &&
    !(
      isObject(signing) &&
      isObject(signing.key) &&
      isString(signing.issuer) &&
      (isString(signing.audience) || isStrings(signing.audience))
    )
  ) {
    throw new KeyError('unsupported', 'sign needs a key (a private JWK for signatures), an issuer and an audience');
  }
  const stated = Object.fromEntries(Object.entries(claims).filter(([, value]) => value !== undefined));
  if ('exp' in stated && expiresIn !== undefined)
    throw new TypeError('Give either the claim exp or expiresIn, not both');
  if (expiresIn !== undefined && expiresIn !== null && !(isNumber(expiresIn) && expiresIn > 0))
    throw new TypeError('expiresIn must be a positive number of seconds, or null');
  const jwk = pickRecipient(recipient);
  const iat = Math.floor(Date.now() / 1000);
  const times = expiresIn === null ? { iat } : { iat, exp: iat + (expiresIn ?? 3600) };
  const who = signing && { iss: signing.issuer, aud: signing.audience };
  const payload = Buffer.from(JSON.stringify({ ...who, ...times, ...stated }));
  const token = signing
    ? compactEncrypt(Buffer.from(await compactSign(payload, signing.key)), jwk, { cty: 'JWT' })
    : compactEncrypt(payload, jwk);
  if (token.length > MAX_TOKEN)
    throw new TypeError(
      `The token would have ${token.length} characters; servers take at most ${MAX_TOKEN}: put less into the claims`,
    );
  return token;
}

// End of the audit surface.

// ## Key sets
// -----------

type Report = (event: AuthEvent) => void;

const warned = new Set<string>();
function warnOnce(code: string, message: string): void {
  if (!warned.has(code)) process.emitWarning(message, { code, type: 'McpAuthWarning' });
  warned.add(code);
}

const MAX_KEY_FILE = 1_048_576; // octets; four 8192-bit keys have 26,000
const OPEN_FLAGS = files.O_RDONLY | (files.O_NONBLOCK ?? 0); // a FIFO must not hang the server

function parseKeyFile(path: string, text: Buffer, now: number): DecryptionKey[] {
  const set = parseObject(text);
  if (!set)
    throw new KeyError(
      'malformed',
      `${path}: is not a JSON object in UTF-8; generate keys with "mcp-auth-middleware generate"`,
    );
  const keys = importPrivateSet(set, path, now);
  if ([...listKeys(set, path)].some(([jwk]) => jwk.alg === undefined)) {
    warnOnce(
      'MCP_AUTH_KEY_ALG',
      `A key in ${path} has no "alg" and is taken as RSA-OAEP-256; for producers that send RSA-OAEP add "alg": "RSA-OAEP" to it`,
    );
  }
  return keys;
}

/** What tells one state of a file from another, through a Kubernetes symlink swap as well. Refuses what is no file. */
function describeFile(
  path: string,
  stat: { isFile(): boolean; mode: bigint; size: bigint; mtimeNs: bigint; ctimeNs: bigint; ino: bigint },
): string {
  if (!stat.isFile() || stat.size > MAX_KEY_FILE)
    throw new KeyError('unreadable', `${path}: must be a regular file of at most 1 MiB`);
  if ((stat.mode & 0o004n) !== 0n && process.platform !== 'win32') {
    warnOnce(
      'MCP_AUTH_KEY_FILE_MODE',
      `Every user of this machine can read the private keys in ${path}: chmod 600 (or 440 with a group of its own)`,
    );
  }
  return [stat.mtimeNs, stat.ctimeNs, stat.size, stat.ino].join();
}

function unreadable(path: string, error: unknown): KeyError {
  if (error instanceof KeyError) return error;
  const code = (error as NodeJS.ErrnoException).code;
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return new KeyError(
      'missing',
      `${path}: no such key file; make one with "mcp-auth-middleware generate", or set MCP_KEY_FILE_PATH or keyFile`,
    );
  return new KeyError('unreadable', `${path}: cannot be read (${code}); the server's user needs read permission`);
}

/** The server's private keys: all decrypt until they expire, one is published. A file is re-read as it changes. */
class KeyRing {
  keys: readonly DecryptionKey[] = [];
  /** Counts the changes, for those who looked before one. */
  version = 0;
  readonly #path: string | undefined;
  #seen = '';
  #looked: number;
  #forced = -Infinity;
  #looking: Promise<void> | undefined;

  /** Throws unless there is a usable key: a server without one must not start. */
  constructor(source: { keys: unknown } | { path: string }, now: number) {
    this.#looked = now;
    this.#path = 'path' in source ? source.path : undefined;
    this.keys = 'path' in source ? this.#readAtStart(source.path, now) : importPrivateSet(source.keys, 'keys', now);
    const where = this.#path ?? 'keys';
    for (const key of this.keys) selfTest(key, where);
    if (!activeKey(this.keys, now)) throw new KeyError('expired', `${where}: every key has expired; generate new ones`);
  }

  #readAtStart(path: string, now: number): DecryptionKey[] {
    let fd: number | undefined;
    try {
      fd = openSync(path, OPEN_FLAGS);
      const stat = fstatSync(fd, { bigint: true });
      this.#seen = describeFile(path, stat);
      return parseKeyFile(path, readFileSync(fd), now);
    } catch (error) {
      throw unreadable(path, error);
    } finally {
      if (fd !== undefined) closeSync(fd);
    }
  }

  /** 5 s after the last look, whichever way the clock moved. */
  isDue(now: number): boolean {
    return this.#path !== undefined && Math.abs(now - this.#looked) >= 5;
  }

  /** One look for all who ask meanwhile. Never rejects: after a bad file the last good keys go on. */
  look(now: number, report: Report): Promise<void> {
    const path = this.#path;
    if (path === undefined) return Promise.resolve();
    this.#looked = now;
    this.#looking ??= this.#reload(path, now)
      .then(
        (changed) => {
          if (changed) report(this.loaded(now));
        },
        (error: unknown) => report({ type: 'keys.failed', reason: unreadable(path, error).code }),
      )
      .finally(() => {
        this.#looking = undefined;
      });
    return this.#looking;
  }

  /** Whether a token that no key fits may force a look: once a second at most, for such tokens cost their sender nothing. */
  mayLook(now: number): boolean {
    return this.#path !== undefined && (this.#looking !== undefined || Math.abs(now - this.#forced) >= 1);
  }

  async lookAgain(now: number, report: Report): Promise<void> {
    if (this.#looking || !this.mayLook(now)) return this.#looking;
    this.#forced = now;
    await this.look(now, report);
  }

  loaded(now: number): AuthEvent {
    const active = activeKey(this.keys, now);
    return { type: 'keys.loaded', ...(active && { keyId: active.kid }) };
  }

  async #reload(path: string, now: number): Promise<boolean> {
    const file = await open(path, OPEN_FLAGS);
    try {
      const seen = describeFile(path, await file.stat({ bigint: true }));
      if (seen === this.#seen) return false;
      const read = parseKeyFile(path, await file.readFile(), now);
      const kept = new Map(this.keys.map((key) => [`${key.kid} ${key.alg} ${key.publicJwk.n}`, key]));
      const pairs = read.map((key) => [key, kept.get(`${key.kid} ${key.alg} ${key.publicJwk.n}`) ?? key] as const);
      for (const [key, same] of pairs) if (key === same) await this.#selfTest(key, path);
      // From here on nothing waits and nothing fails: requests see the old keys or the new ones.
      for (const key of this.keys) key.live = false;
      for (const [{ start, exp }, same] of pairs) Object.assign(same, { start, exp, live: true });
      this.keys = pairs.map(([, same]) => same);
      this.version += 1;
      this.#seen = seen;
      return true;
    } finally {
      await file.close();
    }
  }

  /** As at start, but off the event loop; no request uses this key's first lane yet. */
  async #selfTest(key: DecryptionKey, path: string): Promise<void> {
    const probe = randomBytes(32);
    const cek = await unwrapKey(key, publicEncrypt(oaep(key, key.publicKey), probe), 0);
    if (!probe.equals(cek)) throw new KeyError('inconsistent', `${path}: a key does not decrypt what it encrypts`);
  }
}

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);

/** GET, without redirects (RFC 8725 §3.10 on trusting what a URL gives), in at most 5 s and 64 KiB. */
async function fetchJwks(url: URL, algorithms: readonly SignatureAlg[] | undefined): Promise<VerificationKey[]> {
  const signal = AbortSignal.timeout(5000);
  const response = await fetch(url, {
    redirect: 'error',
    signal,
    headers: { accept: 'application/jwk-set+json, application/json' },
  });
  const chunks: Uint8Array[] = [];
  let octets = 0;
  const write = (chunk: Uint8Array): void => {
    octets += chunk.length;
    if (octets > 65_536) throw new KeyError('malformed', 'the JWK Set has more than 64 KiB');
    chunks.push(chunk);
  };
  // With the signal once more: the fetch of Node 20 and 22 loses it to the garbage collection while a body arrives.
  await response.body?.pipeTo(new WritableStream({ write }), { signal });
  const keys = parseObject(Buffer.concat(chunks))?.['keys'];
  const usable =
    response.status === 200 && Array.isArray(keys)
      ? keys.filter(isObject).flatMap((jwk) => importVerificationKey(jwk, algorithms) ?? [])
      : [];
  if (usable.length === 0) throw new KeyError('malformed', 'no JWK Set with a usable key');
  return usable;
}

/** The public keys of one trusted issuer: given, or fetched and kept for 10 min, and for 24 h while it is down. */
class IssuerKeys {
  readonly issuer: string;
  readonly audience: readonly string[];
  keys: readonly VerificationKey[] = [];
  readonly #algorithms: readonly SignatureAlg[] | undefined;
  readonly #url: URL | undefined;
  #fetched = -Infinity;
  #tried = -Infinity;
  #refreshed = -Infinity;
  #failed = false;
  #fetching: Promise<void> | undefined;

  constructor({ issuer, jwks, algorithms }: TrustedIssuer, audience: readonly string[]) {
    this.issuer = issuer;
    this.audience = audience;
    this.#algorithms = algorithms;
    if (jwks instanceof URL) {
      this.#url = new URL(jwks);
      return;
    }
    const set = [...listKeys(jwks, `trustedIssuers: ${issuer}`)];
    if (set.some(([jwk]) => 'd' in jwk || 'k' in jwk))
      throw new KeyError(
        'private',
        `trustedIssuers: ${issuer}: "jwks" holds a private or secret key; give the public keys only`,
      );
    this.keys = set.flatMap(([jwk]) => importVerificationKey(jwk, algorithms) ?? []);
    if (this.keys.length === 0)
      throw new KeyError(
        'unsupported',
        `trustedIssuers: ${issuer}: "jwks" has no key for signatures by RS256, PS256, ES256 or EdDSA that "algorithms" allows`,
      );
  }

  isFresh(now: number): boolean {
    return !this.#url || now - this.#fetched < 600;
  }
  isUsable(now: number): boolean {
    return !this.#url || now - this.#fetched < 86_400;
  }

  /**
   * Brings an old set up to date. A promise when the verdict has to wait for that, known tokens' too, or a withdrawn key would be
   * accepted once more; while the issuer is down the last good set goes on at once, and every 30 s it is tried beside that.
   */
  update(now: number, report: Report): Promise<void> | undefined {
    if (this.isFresh(now) || (!this.#fetching && now - this.#tried < (this.isUsable(now) ? 30 : 1))) return undefined;
    const goesOn = this.#failed && this.isUsable(now);
    const fetched = this.#fetch(now, report);
    return goesOn ? undefined : fetched;
  }

  /** For an unknown kid, every 30 s at most. */
  async refresh(now: number, report: Report): Promise<void> {
    if (now - this.#refreshed < 30) return this.#fetching;
    this.#refreshed = now;
    await this.#fetch(now, report);
  }

  async #fetch(now: number, report: Report): Promise<void> {
    const url = this.#url;
    if (!url) return;
    this.#tried = now;
    this.#fetching ??= fetchJwks(url, this.#algorithms)
      .then((keys) => {
        const kept = new Map(this.keys.map((key) => [key.id, key]));
        for (const key of this.keys) key.live = false;
        this.keys = keys.map((key) => Object.assign(kept.get(key.id) ?? key, { live: true }));
        this.#fetched = now;
        this.#failed = false;
        report({ type: 'issuer.fetched', issuer: this.issuer });
      })
      .catch((error: unknown) => {
        this.#failed = true;
        report({
          type: 'issuer.failed',
          issuer: this.issuer,
          reason: error instanceof KeyError ? 'malformed' : 'unreachable',
        });
      })
      .finally(() => {
        this.#fetching = undefined;
      });
    await this.#fetching;
  }
}

// ## Options
// ----------

type Rule = readonly [test: (value: unknown) => boolean, expected: string];

const isText = (value: unknown): value is string => isString(value) && value !== '';
const isTexts = (value: unknown): value is string[] => isStrings(value) && value.every(isText);
const isBetween =
  (least: number, most: number) =>
  (value: unknown): boolean =>
    Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most;
const isBoolean = (value: unknown): boolean => typeof value === 'boolean';
const isFunction = (value: unknown): boolean => typeof value === 'function';
const isRawPath = (value: unknown): boolean => isString(value) && /^\/[\x21-\x7e]*$/.test(value) && !/[?#]/.test(value);
const isHttpUrl = (value: unknown): boolean =>
  isText(value) && URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) && !/[#"\\\s]/.test(value);
const isOrigin = (value: unknown): boolean => isHttpUrl(value) && new URL(String(value)).origin === value;
const isAudience = (value: unknown): boolean => isText(value) || (isTexts(value) && value.length > 0);
/** An RFC 6749 §3.3 scope-token, which can stand in a challenge. */
const isScopeToken = (value: unknown): boolean => isString(value) && /^[\x21\x23-\x5b\x5d-\x7e]+$/.test(value);

const ISSUER_OPTIONS: Record<keyof TrustedIssuer, Rule> = {
  issuer: [isText, 'the iss of its tokens'],
  jwks: [
    (value) =>
      isObject(value) &&
      (!(value instanceof URL) ||
        ((value.protocol === 'https:' || (value.protocol === 'http:' && isLoopback(value.hostname))) &&
          !value.username &&
          !value.password)),
    'a JWK Set, or a URL object: https, or http on a loopback host',
  ],
  audience: [isAudience, 'a string or an array of strings'],
  algorithms: [
    (value) => isTexts(value) && value.length > 0 && value.every((alg) => boundAlg(alg) !== undefined),
    'an array of RS256, PS256, ES256, EdDSA',
  ],
};
const VERIFIER_OPTIONS: Record<keyof VerifierOptions, Rule> = {
  keyFile: [isText, 'a path'],
  keys: [isObject, 'a private JWK Set'],
  trustedIssuers: [
    (value) => Array.isArray(value) && value.length > 0 && value.every(isObject),
    'an array of { issuer, jwks }',
  ],
  audience: [isAudience, 'a string or an array of strings'],
  clockTolerance: [(value) => isNumber(value) && value >= 0 && value <= 300, 'a number of seconds from 0 to 300'],
  maxTokenAge: [(value) => isNumber(value) && value > 0, 'a positive number of seconds'],
  requireExp: [isBoolean, 'a boolean'],
  claimsMember: [isText, 'the name of a claim'],
  cache: [
    (value) =>
      value === false ||
      (isObject(value) && Object.keys(value).join() === 'maxEntries' && isBetween(1, 1_000_000)(value['maxEntries'])),
    'false or { maxEntries: 1 to 1,000,000 }',
  ],
  concurrency: [isBetween(1, 1024), 'an integer from 1 to 1024'],
  maxPending: [isBetween(0, 1_000_000), 'an integer from 0 to 1,000,000'],
  now: [isFunction, 'a function that returns seconds'],
};

/** Checks every option and returns a copy that no later change to `options`, and no polluted prototype, reaches. */
function readOptions<T extends object>(options: T, rules: Record<keyof T, Rule>, where = ''): T {
  if (!isObject(options)) throw new KeyError('option', `${where}options must be an object`);
  const copy: JsonObject = Object.create(null);
  for (const [name, value] of Object.entries(options)) {
    const rule: Rule | undefined = Object.hasOwn(rules, name) ? rules[name as keyof T] : undefined;
    if (!rule)
      throw new KeyError('option', `${where}unknown option "${name}"; there are ${Object.keys(rules).join(', ')}`);
    if (value !== undefined && !rule[0](value))
      throw new KeyError('option', `${where}option "${name}" must be ${rule[1]}`);
    if (value !== undefined) copy[name] = Array.isArray(value) ? [...value] : value;
  }
  return copy as T;
}

const refuseOptions = (message: string): never => {
  throw new KeyError('option', message);
};
const toArray = (value: string | string[] | undefined): string[] => (isString(value) ? [value] : [...(value ?? [])]);

function importIssuers(options: VerifierOptions): IssuerKeys[] {
  const issuers = (options.trustedIssuers ?? []).map((given) => readOptions(given, ISSUER_OPTIONS, 'trustedIssuers: '));
  if (issuers.some(({ issuer, jwks }) => !issuer || !jwks))
    refuseOptions('trustedIssuers: option "issuer" and option "jwks" are both needed');
  if (new Set(issuers.map(({ issuer }) => issuer)).size < issuers.length)
    refuseOptions('option "trustedIssuers" names an issuer twice');
  return issuers.map((trusted) => {
    const expected = toArray(trusted.audience ?? options.audience);
    // Otherwise another recipient could re-encrypt a signed token to this server.
    if (expected.length === 0)
      refuseOptions(
        'option "trustedIssuers" needs option "audience" or "resource": a signed token must say that it is for this server',
      );
    return new IssuerKeys(trusted, expected);
  });
}

// ## Verifier
// -----------

/** An authentic token. What can change with time or with the keys is judged at every use. */
interface Entry {
  readonly auth: Auth;
  /** The whole claims set; with `claimsMember`, `auth.user` is a member of it. */
  readonly claims: AuthUser;
  readonly key: DecryptionKey;
  readonly signer: { issuer: IssuerKeys; key: VerificationKey } | undefined;
}
interface Flight {
  promise: Promise<Entry>;
  place: Place;
  waiting: number;
}

/** Authentic tokens by SHA-256, least recently used first. Failures are never kept: there is no end of them. */
class TokenCache {
  readonly #entries = new Map<string, Entry>();
  readonly #maxEntries: number;
  #octets = 0;
  constructor(maxEntries: number) {
    this.#maxEntries = maxEntries;
  }

  get(id: string): Entry | undefined {
    const entry = this.#entries.get(id);
    if (entry) {
      this.#entries.delete(id);
      this.#entries.set(id, entry);
    }
    return entry;
  }

  set(id: string, entry: Entry): void {
    this.delete(id);
    this.#entries.set(id, entry);
    this.#octets += entry.auth.token.length;
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#maxEntries && this.#octets <= 4_194_304) return;
      this.delete(oldest);
    }
  }

  delete(id: string): void {
    this.#octets -= this.#entries.get(id)?.auth.token.length ?? 0;
    this.#entries.delete(id);
  }
}

interface Signed {
  claims: AuthUser;
  signer: { issuer: IssuerKeys; key: VerificationKey };
}

/** `iss` counts only under the key set that verified it; a token that names no key only when its issuer has one that fits. */
function matchIssuer(jws: CompactJws, issuers: readonly IssuerKeys[]): Signed | 'unknown' | 'signature' | 'issuer' {
  let failure: 'unknown' | 'signature' | 'issuer' = 'unknown';
  for (const issuer of issuers) {
    const keys = issuer.keys.filter((key) => key.alg === jws.alg && (jws.kid === undefined || key.kid === jws.kid));
    for (const key of jws.kid === undefined && keys.length > 1 ? [] : keys) {
      if (verifySignature(jws, key)) {
        const claims = readClaims(jws.payload);
        if (claims.iss === issuer.issuer) return { claims, signer: { issuer, key } };
        failure = 'issuer';
      } else if (failure === 'unknown') failure = 'signature';
    }
  }
  return failure;
}

function readScopes({ scope, scp }: AuthUser): readonly string[] {
  const scopes = isString(scope) ? scope : scp;
  return Object.freeze(
    isString(scopes) ? scopes.split(' ').filter(isText) : Array.isArray(scopes) ? scopes.filter(isText) : [],
  );
}

/** Who a session belongs to: (iss, sub), or the claims that stay when a token is refreshed. */
function principalOf(entry: Entry | undefined): string {
  if (!entry) return 'anonymous';
  const {
    auth: { user, signed },
    claims,
  } = entry;
  if (user.sub !== undefined) return JSON.stringify([signed, claims.iss ?? null, user.sub]);
  const { exp: _exp, iat: _iat, nbf: _nbf, jti: _jti, ...lasting } = user;
  const sorted = JSON.stringify(lasting, (_name, value: unknown) =>
    isObject(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value,
  );
  return hash('sha256', JSON.stringify([signed, claims.iss ?? null, sorted]), 'base64url');
}

/** Which principal opened which Mcp-Session-Id: 10,000 sessions, 100 a principal, least recently used first. */
class Sessions {
  readonly #owners = new Map<string, string>();
  readonly #ids = new Map<string, Set<string>>();

  /** An id nobody opened here passes: another process may know it. */
  allows(id: string, principal: string): boolean {
    const owner = this.#owners.get(id);
    if (owner !== principal) return owner === undefined;
    const ids = this.#ids.get(owner);
    this.#owners.delete(id);
    this.#owners.set(id, owner);
    if (ids?.delete(id)) ids.add(id);
    return true;
  }

  /** Never re-binds. */
  open(id: string, principal: string): void {
    if (this.#owners.has(id)) return;
    const ids = this.#ids.get(principal) ?? new Set();
    this.#owners.set(id, principal);
    this.#ids.set(principal, ids.add(id));
    const [own] = ids.size > 100 ? ids : [];
    const [any] = this.#owners.size > 10_000 ? this.#owners.keys() : [];
    for (const oldest of [own ?? any]) if (oldest !== undefined) this.close(oldest);
  }

  close(id: string): void {
    const owner = this.#owners.get(id);
    if (owner === undefined) return;
    const ids = this.#ids.get(owner);
    this.#owners.delete(id);
    ids?.delete(id);
    if (ids?.size === 0) this.#ids.delete(owner);
  }
}

/** Cache, single flight, decryption, signature, claims: the one way from a token to its user. */
class Verifier {
  readonly ring: KeyRing;
  readonly now: () => number;
  readonly sessions: Sessions = new Sessions();
  /** Whether `audience` was given. Then every token must name it. */
  readonly audience: readonly string[];
  readonly #issuers: IssuerKeys[];
  readonly #rules: ClaimRules;
  readonly #claimsMember: string | undefined;
  readonly #cache: TokenCache | undefined;
  readonly #share: Share;
  readonly #maxFlights: number;
  readonly #flights = new Map<string, Flight>();
  readonly #reports = new Set<Report>();

  constructor(given: VerifierOptions) {
    const options = readOptions(given, VERIFIER_OPTIONS);
    const {
      keys,
      trustedIssuers,
      clockTolerance = 30,
      maxTokenAge,
      requireExp = trustedIssuers !== undefined,
      claimsMember,
    } = options;
    const {
      cache = { maxEntries: 1000 },
      concurrency = LANES,
      maxPending = 256,
      now = () => Date.now() / 1000,
    } = options;
    if (keys && options.keyFile !== undefined) refuseOptions('option "keys" and option "keyFile" exclude each other');
    if (trustedIssuers && !requireExp) refuseOptions('option "requireExp" cannot be false with "trustedIssuers"');
    const path = options.keyFile ?? process.env['MCP_KEY_FILE_PATH'];
    if (!keys && !path)
      throw new KeyError(
        'missing',
        'No private key: set MCP_KEY_FILE_PATH or option "keyFile"; make a key file with "mcp-auth-middleware generate"',
      );
    this.now = now;
    this.audience = toArray(options.audience);
    this.#issuers = importIssuers(options);
    this.#rules = { clockTolerance, maxTokenAge, requireExp };
    this.#claimsMember = claimsMember;
    this.#cache = cache ? new TokenCache(cache.maxEntries) : undefined;
    this.#share = { concurrency: Math.min(concurrency, LANES), running: 0 };
    this.#maxFlights = maxPending + this.#share.concurrency;
    this.ring = new KeyRing(keys ? { keys } : { path: path ?? '' }, now());
    if (!trustedIssuers)
      warnOnce(
        'MCP_AUTH_SELF_ASSERTED',
        'Tokens are encrypted but not signed: whoever can read the public key can claim to be anyone. Set trustedIssuers unless another layer authenticates the caller',
      );
  }

  subscribe(report: Report): void {
    this.#reports.add(report);
    report(this.ring.loaded(this.now()));
  }

  readonly report: Report = (event) => {
    for (const report of this.#reports) report(event);
  };

  /** New tokens that wait for decryption or for an issuer's keys. */
  get pending(): number {
    return this.#flights.size;
  }

  /** At once for a known token, which never waits behind unknown ones; a promise otherwise. Throws AuthError either way. */
  admit(token: string, client?: Pick<Head, 'onLeave'>): Entry | Promise<Entry> {
    if (token.length > MAX_TOKEN) throw new AuthError('malformed');
    const id = hash('sha256', token, 'base64url');
    const known = this.#cache?.get(id);
    const again = known && this.readmit(known, this.now());
    if (again) return again;
    if (known) this.#cache?.delete(id);
    return this.#join(this.#flights.get(id) ?? this.#take(id, token), id, client);
  }

  /** A known token once more: keys, issuer, times and audience are judged at every use. Undefined when its keys no longer stand for it. */
  readmit(entry: Entry, now: number): Entry | Promise<Entry> | undefined {
    const update = entry.signer?.issuer.update(now, this.report);
    if (update) return update.then(() => this.admit(entry.auth.token));
    return this.#isCurrent(entry, now) ? this.#judge(entry, now) : undefined;
  }

  #join(flight: Flight, id: string, client: Pick<Head, 'onLeave'> | undefined): Promise<Entry> {
    flight.waiting += 1;
    client?.onLeave(() => {
      flight.waiting -= 1;
      if (flight.waiting === 0 && flight.place.leave()) this.#flights.delete(id);
    });
    return flight.promise.then((entry) => this.#judge(entry, this.now()));
  }

  #isCurrent({ key, signer }: Entry, now: number): boolean {
    return key.live && now < key.exp && (!signer || (signer.key.live && signer.issuer.isUsable(now)));
  }

  #judge(entry: Entry, now: number): Entry {
    judgeTimes(entry.claims, this.#rules, now);
    const audience = entry.signer?.issuer.audience ?? this.audience;
    if (audience.length > 0) judgeAudience(entry.claims, audience);
    return entry;
  }

  /** The one decryption for all requests that bring this token meanwhile. What can be refused without it, is. */
  #take(id: string, token: string): Flight {
    const jwe = parseJwe(token);
    const now = this.now();
    let keys: DecryptionKey[] = [];
    try {
      keys = candidateKeys(this.ring.keys, jwe, now);
    } catch (error) {
      if (!(error instanceof AuthError && error.reason === 'unknown_key' && this.ring.mayLook(now))) throw error;
    }
    if (this.#flights.size >= this.#maxFlights) throw new AuthError('overloaded');
    const place: Place = { leave: () => false };
    const flight: Flight = { promise: this.#verify(token, jwe, keys, place), place, waiting: 0 };
    this.#flights.set(id, flight);
    const land = (): unknown => this.#flights.get(id) === flight && this.#flights.delete(id);
    flight.promise.then((entry) => {
      land();
      this.#cache?.set(id, entry);
    }, land);
    return flight;
  }

  async #verify(token: string, jwe: CompactJwe, keys: readonly DecryptionKey[], place: Place): Promise<Entry> {
    try {
      const { plaintext, key } = await this.#decrypt(jwe, keys, place);
      const nested = /^jwt$/i.test(jwe.header.cty ?? '');
      // Neither level reads the other's tokens: not the unsigned where a signature is required, nor the signed unverified.
      if (nested !== this.#issuers.length > 0) throw new AuthError('signature');
      const signed = nested ? await this.#verifyNested(parseJws(plaintext)) : undefined;
      const claims = signed?.claims ?? readClaims(plaintext);
      const entry = this.#entry(token, key, claims, signed?.signer);
      if (!this.#isCurrent(entry, this.now())) throw new AuthError('unknown_key'); // the keys may have changed meanwhile
      return entry;
    } catch (error) {
      throw error instanceof AuthError ? error : new AuthError('malformed'); // fail closed, and the same way
    }
  }

  /** When no key fits, or none of them opened a token that names none, the key file may have changed: one look, one more try. */
  async #decrypt(jwe: CompactJwe, keys: readonly DecryptionKey[], place: Place): Promise<Opened> {
    const { version } = this.ring;
    let opened = await tryKeys(jwe, keys, this.#share, place);
    if (!opened && (keys.length === 0 || jwe.header.kid === undefined)) {
      await this.ring.lookAgain(this.now(), this.report);
      if (this.ring.version !== version)
        opened = await tryKeys(jwe, candidateKeys(this.ring.keys, jwe, this.now()), this.#share, place);
    }
    if (!opened) throw new AuthError(keys.length === 0 ? 'unknown_key' : 'undecryptable');
    return opened;
  }

  /** RFC 7519 §5.2. Fresh key sets first; then each issuer's as it arrives, so that one that is down delays no other's tokens. */
  async #verifyNested(jws: CompactJws): Promise<Signed> {
    const now = this.now();
    const known = matchIssuer(
      jws,
      this.#issuers.filter((issuer) => issuer.isFresh(now)),
    );
    if (!isString(known)) return known;
    const attempts = this.#issuers.map(async (issuer) => {
      const update = issuer.update(now, this.report);
      await update;
      let match = matchIssuer(jws, [issuer]);
      if (match === 'unknown' && !update) {
        await issuer.refresh(now, this.report);
        match = matchIssuer(jws, [issuer]);
      }
      if (!issuer.isUsable(now)) throw new AuthError('issuer_unavailable');
      if (isString(match)) throw new AuthError(match === 'issuer' ? 'issuer' : 'signature');
      return match;
    });
    return Promise.any(attempts).catch(({ errors }: { errors: AuthError[] }) => {
      throw (
        errors.find(({ reason }) => reason === 'issuer_unavailable') ??
        errors.find(({ reason }) => reason === 'issuer') ??
        errors[0]
      );
    });
  }

  #entry(token: string, key: DecryptionKey, claims: AuthUser, signer: Entry['signer']): Entry {
    const user = this.#claimsMember === undefined ? claims : claims[this.#claimsMember];
    if (!isObject(user) || (user['sub'] !== undefined && !isString(user['sub']))) throw new AuthError('claims');
    const { exp } = claims;
    const auth: Auth = {
      user,
      token,
      signed: signer !== undefined,
      keyId: key.kid,
      scopes: readScopes(user),
      ...(signer && { issuer: signer.issuer.issuer }),
      ...(exp !== undefined && { expiresAt: exp }),
    };
    return { auth: Object.freeze(auth), claims, key, signer };
  }
}

const verifiers = new WeakMap<JWETokenVerifier, Verifier>();

/** Verifies tokens outside the middleware: in an `upgrade` handler, a queue consumer, a test. */
export class JWETokenVerifier {
  /** @throws KeyError for bad options, and when there is no usable key */
  constructor(options: VerifierOptions = {}) {
    verifiers.set(this, new Verifier(options));
  }

  /** The claims of a valid token. @throws AuthError (a rejection) for any other */
  async verifyToken(token: string): Promise<AuthUser> {
    return (await this.authenticate(token)).user;
  }

  /** The same with what is known beside the claims. @throws AuthError (a rejection) */
  async authenticate(token: string): Promise<Auth> {
    const verifier = verifierOf(this);
    if (!isString(token)) throw new AuthError('malformed');
    const now = verifier.now();
    if (verifier.ring.isDue(now)) await verifier.ring.look(now, verifier.report);
    return (await verifier.admit(token)).auth;
  }

  /** The JWK Set to publish: the active public key. */
  getJwks(): JwkSet {
    const { ring, now } = verifierOf(this);
    return publish(ring.keys, now());
  }
}

function verifierOf(verifier: JWETokenVerifier): Verifier {
  return verifiers.get(verifier) ?? refuseOptions('option "verifier" must be a JWETokenVerifier');
}

// ## Decision
// -----------

/** What a request is decided on, whatever server it came through. */
interface Head {
  method: string;
  /** Raw, without the query. */
  path: string;
  /** The values of every field of the token header. */
  tokens: string[];
  field(name: string): string | undefined;
  /** Takes what to call, once, when the client is gone. */
  onLeave(leave: () => void): void;
  /** What a client's next request comes on, too. */
  socket: object | undefined;
}
interface Answer {
  status: number;
  headers: Record<string, string>;
  body: string;
}
/** What getAuthInfo() says of the server. */
interface Resource {
  readonly resource?: string | undefined;
  readonly resourceMetadataUrl?: string | undefined;
}
interface Store {
  readonly auth: Auth | undefined;
  readonly at: Resource;
}
interface Pass {
  store: Store;
  headers: Record<string, string>;
  /** Notes what the handler's answer does to the session. */
  watch: ((status: number, opened: string | undefined) => void) | undefined;
}
type Decision = Answer | Pass;

const REQUEST_OPTIONS: Record<Exclude<keyof AuthOptions, keyof VerifierOptions>, Rule> = {
  verifier: [(value) => value instanceof JWETokenVerifier, 'a JWETokenVerifier'],
  jwksPath: [isRawPath, 'a raw path that starts with /'],
  requiredClaims: [isTexts, 'an array of claim names'],
  requiredScopes: [(value) => Array.isArray(value) && value.every(isScopeToken), 'an array of scope names'],
  anonymous: [isBoolean, 'a boolean'],
  publicPaths: [(value) => Array.isArray(value) && value.every(isRawPath), 'an array of raw paths that start with /'],
  tokenHeader: [(value) => isString(value) && /^[!#$%&'*+.^_`|~0-9a-z-]+$/i.test(value), 'the name of a header field'],
  resource: [isHttpUrl, 'an absolute http(s) URL without a fragment'],
  authorizationServers: [(value) => isTexts(value) && value.length > 0 && value.every(isHttpUrl), 'an array of URLs'],
  openidConfiguration: [isBoolean, 'a boolean'],
  cors: [
    (value) =>
      value === false ||
      (isObject(value) &&
        Object.keys(value).join() === 'origin' &&
        (value['origin'] === '*' || (Array.isArray(value['origin']) && value['origin'].every(isOrigin)))),
    'false or { origin: "*" or an array of origins such as "https://app.example" }',
  ],
  bindSessions: [isBoolean, 'a boolean'],
  onEvent: [isFunction, 'a function'],
};

const context = new AsyncLocalStorage<Store>();
const NOBODY: Store = Object.freeze({ auth: undefined, at: Object.freeze({}) });

/** Events go out in nobody's context, and a listener that fails changes no answer. */
function guardReport(onEvent: (event: AuthEvent) => unknown): Report {
  const failed = (): void =>
    warnOnce('MCP_AUTH_ON_EVENT', 'onEvent threw or rejected; authentication goes on without it');
  return (event) =>
    context.run(NOBODY, () => {
      try {
        Promise.resolve(onEvent(event)).catch(failed);
      } catch {
        failed();
      }
    });
}

const NO_HEADERS: Record<string, string> = Object.freeze({});
const PREFLIGHT_HEADERS = [
  'authorization',
  'content-type',
  'accept',
  'mcp-protocol-version',
  'mcp-session-id',
  'last-event-id',
  'mcp-method',
  'mcp-name',
];

const isSuccess = (status: number): boolean => status >= 200 && status < 300;

function answerDocument(method: string, document: () => object): Answer {
  const cors = { 'access-control-allow-origin': '*' };
  const allow = 'GET, HEAD, OPTIONS';
  if (method === 'GET' || method === 'HEAD') {
    return {
      status: 200,
      headers: { ...cors, 'content-type': 'application/json', 'cache-control': 'public, max-age=300' },
      body: JSON.stringify(document()),
    };
  }
  if (method === 'OPTIONS') {
    return {
      status: 204,
      headers: {
        ...cors,
        allow,
        'access-control-allow-methods': allow,
        'access-control-allow-headers': '*',
        'access-control-max-age': '600',
      },
      body: '',
    };
  }
  const { code, status, message } = new AuthError('method');
  const headers = { ...cors, allow, 'content-type': 'application/json', 'cache-control': 'no-store' };
  return { status, headers, body: JSON.stringify({ error: code, error_description: message }) };
}

/** RFC 6750 §2.1: the scheme in any case. Undefined for another scheme; what follows Bearer is judged as a token, whatever it is. */
function readBearer(field: string): string | undefined {
  const scheme = /^bearer(?: +|(?![!#$%&'*+.^_`|~0-9a-z-]))/i.exec(field);
  return scheme ? field.slice(scheme[0].length) : undefined;
}

/** RFC 9728 §3.1: the well-known path goes between the host and the path of the resource. */
function metadataUrl(resource: string): string {
  const { origin, pathname, search } = new URL(resource);
  return `${origin}/.well-known/oauth-protected-resource${pathname === '/' ? '' : pathname}${search}`;
}

/** The public documents by path: JWKS, Protected Resource Metadata (RFC 9728 §3.1), OpenID configuration. */
function listDocuments(options: AuthOptions, verifier: Verifier): Map<string, () => object> {
  const {
    jwksPath = '/.well-known/jwks.json',
    resource,
    authorizationServers,
    requiredClaims = [],
    requiredScopes = [],
  } = options;
  const documents = new Map<string, () => object>([[jwksPath, () => publish(verifier.ring.keys, verifier.now())]]);
  if (resource === undefined) return documents;
  const { origin } = new URL(resource);
  const supported = (scopes: string[]): object => (scopes.length ? { scopes_supported: scopes } : {});
  const metadata = {
    resource,
    jwks_uri: origin + jwksPath,
    ...(authorizationServers && { authorization_servers: authorizationServers }),
    bearer_methods_supported: ['header'],
    ...supported(requiredScopes),
  };
  for (const path of ['/.well-known/oauth-protected-resource', new URL(metadataUrl(resource)).pathname])
    documents.set(path, () => metadata);
  if (options.openidConfiguration) {
    const configuration = {
      issuer: origin,
      jwks_uri: origin + jwksPath,
      ...supported([...requiredClaims, ...requiredScopes]),
    };
    documents.set('/.well-known/openid-configuration', () => configuration);
  }
  return documents;
}

/** From a request's head to what it gets. The rows of the contract apply in the order of the code. */
class Gate {
  readonly tokenHeader: string;
  readonly #verifier: Verifier;
  readonly #options: {
    requiredClaims: string[];
    requiredScopes: string[];
    anonymous: boolean;
    bindSessions: boolean;
    sendsCors: boolean;
  };
  readonly #documents: Map<string, () => object>;
  readonly #publicPaths: Set<string>;
  readonly #origins: Set<string>;
  readonly #resource: Resource;
  readonly #report: Report | undefined;
  /** The last known header field of each socket, compared exactly: spares a returning client the hash. */
  readonly #last = new WeakMap<object, { field: string; entry: Entry }>();

  constructor(given: AuthOptions) {
    const options = readOptions(given, { ...VERIFIER_OPTIONS, ...REQUEST_OPTIONS });
    const { verifier, resource, cors, onEvent } = options;
    const {
      requiredClaims = [],
      requiredScopes = [],
      anonymous = false,
      bindSessions = true,
      tokenHeader = 'authorization',
    } = options;
    const own = withoutPrototype(
      Object.fromEntries(Object.entries(options).filter(([name]) => Object.hasOwn(VERIFIER_OPTIONS, name))),
    );
    const [extra] = Object.keys(own);
    if (verifier && extra)
      refuseOptions(`option "verifier" and option "${extra}" exclude each other: give it to the verifier`);
    if (options.openidConfiguration && !resource) refuseOptions('option "openidConfiguration" needs option "resource"');
    // A signed token must be for this server (RFC 8707): for its resource, unless another audience is agreed on.
    if (options.trustedIssuers && resource) own['audience'] ??= resource;
    this.#verifier = verifierOf(verifier ?? new JWETokenVerifier(own));
    this.#options = { requiredClaims, requiredScopes, anonymous, bindSessions, sendsCors: Boolean(cors) };
    this.tokenHeader = tokenHeader.toLowerCase();
    this.#documents = listDocuments(options, this.#verifier);
    this.#publicPaths = new Set(options.publicPaths);
    this.#origins = new Set([...(resource ? [new URL(resource).origin] : []), ...(cors ? cors.origin : [])]);
    this.#resource = { resource, resourceMetadataUrl: resource && metadataUrl(resource) };
    this.#report = onEvent && guardReport(onEvent);
    if (this.#report) this.#verifier.subscribe(this.#report);
  }

  /** At once unless something has to be read or decrypted. */
  decide(head: Head): Decision | Promise<Decision> {
    const { ring, report } = this.#verifier;
    const now = this.#verifier.now();
    return ring.isDue(now)
      ? ring.look(now, report).then(() => this.#decide(head, this.#verifier.now()))
      : this.#decide(head, now);
  }

  #decide(head: Head, now: number): Decision | Promise<Decision> {
    const started = this.#report ? performance.now() : 0;
    try {
      return this.#beforeToken(head) ?? this.#judge(head, now, started);
    } catch (error) {
      return this.#refuse(head, error, started);
    }
  }

  /** Everything that needs no user. */
  #beforeToken(head: Head): Decision | undefined {
    const document = this.#documents.get(head.path);
    if (document) return answerDocument(head.method, document);
    const origin = head.field('origin');
    if (origin !== undefined && !this.#allows(origin)) throw new AuthError('origin'); // DNS rebinding
    if (
      this.#options.sendsCors &&
      head.method === 'OPTIONS' &&
      origin !== undefined &&
      head.field('access-control-request-method') !== undefined
    )
      return this.#preflight(head);
    if (this.#publicPaths.has(head.path))
      return { store: { auth: undefined, at: NOBODY.at }, headers: this.#cors(head), watch: undefined };
    if (head.tokens.length > 1) throw new AuthError('duplicate_token');
    return undefined;
  }

  #judge(head: Head, now: number, started: number): Decision | Promise<Decision> {
    const [field = ''] = head.tokens;
    const last = head.socket && this.#last.get(head.socket);
    let admitted = last?.field === field ? this.#verifier.readmit(last.entry, now) : undefined;
    if (!admitted) {
      const token = readBearer(field);
      if (token === undefined && !this.#options.anonymous) throw new AuthError('no_token');
      if (token === undefined) return this.#enter(head, undefined);
      admitted = this.#verifier.admit(token, head);
      if (head.socket && !(admitted instanceof Promise)) this.#last.set(head.socket, { field, entry: admitted });
    }
    if (!(admitted instanceof Promise)) return this.#accept(head, admitted, started, true);
    return admitted
      .then((entry) => this.#accept(head, entry, started, false))
      .catch((error: unknown) => this.#refuse(head, error, started));
  }

  #accept(head: Head, entry: Entry, started: number, cached: boolean): Decision {
    const { auth, claims } = entry;
    const { requiredClaims, requiredScopes } = this.#options;
    const { resource } = this.#resource;
    if (resource !== undefined && !auth.signed && claims.aud !== undefined && this.#verifier.audience.length === 0)
      judgeAudience(claims, [resource]);
    if (requiredClaims.length + requiredScopes.length > 0) {
      const missing = [
        ...requiredClaims.filter((claim) => (auth.user[claim] ?? null) === null),
        ...requiredScopes.filter((scope) => !auth.scopes.includes(scope)),
      ];
      if (missing.length > 0) throw new AuthError('insufficient_scope', missing);
    }
    const decision = this.#enter(head, entry);
    this.#report?.({ type: 'accepted', keyId: auth.keyId, cached, durationMs: performance.now() - started });
    return decision;
  }

  #enter(head: Head, entry: Entry | undefined): Decision {
    const pass: Pass = {
      store: { auth: entry?.auth, at: this.#resource },
      headers: this.#cors(head),
      watch: undefined,
    };
    if (!this.#options.bindSessions) return pass;
    const { sessions } = this.#verifier;
    const id = head.field('mcp-session-id') || undefined;
    if (id === undefined)
      pass.watch = (status, opened) => {
        if (opened !== undefined && isSuccess(status)) sessions.open(opened, principalOf(entry));
      };
    else if (!sessions.allows(id, principalOf(entry))) throw new AuthError('session');
    else if (head.method === 'DELETE')
      pass.watch = (status) => {
        if (isSuccess(status)) sessions.close(id);
      };
    return pass;
  }

  #refuse(head: Head, error: unknown, started: number): Decision {
    const refusal = error instanceof AuthError ? error : new AuthError('malformed');
    const { code, status, reason, message, missing } = refusal;
    const headers: Record<string, string> = {
      'content-type': 'application/json',
      'cache-control': 'no-store',
      ...this.#cors(head),
    };
    if (reason !== 'origin' && status < 404) headers['www-authenticate'] = this.#challenge(refusal);
    if (status === 503) headers['retry-after'] = '1';
    const body = JSON.stringify(
      reason === 'session'
        ? { jsonrpc: '2.0', error: { code: -32001, message }, id: null } // as the MCP SDKs answer for a session they do not know
        : { error: code, error_description: message, ...(missing.length > 0 && { missing }) },
    );
    const { pending } = this.#verifier;
    this.#report?.({
      type: reason === 'overloaded' ? 'overloaded' : 'rejected',
      reason,
      status,
      pending,
      durationMs: performance.now() - started,
    });
    return { status, headers, body };
  }

  /** RFC 6750 §3 and RFC 9728 §5.1. All values are constants or checked at construction, so they quote safely. */
  #challenge({ code, reason, message }: AuthError): string {
    const { requiredClaims, requiredScopes } = this.#options;
    const scopes =
      reason === 'insufficient_scope' ? [...requiredClaims, ...requiredScopes].filter(isScopeToken) : requiredScopes;
    const { resourceMetadataUrl } = this.#resource;
    const parameters = {
      ...(reason !== 'no_token' && { error: code, error_description: message }),
      ...(scopes.length > 0 && { scope: [...new Set(scopes)].join(' ') }),
      ...(resourceMetadataUrl !== undefined && { resource_metadata: resourceMetadataUrl }),
    };
    return `Bearer ${Object.entries(parameters)
      .map(([name, value]) => `${name}="${value}"`)
      .join(', ')}`.trimEnd();
  }

  #allows(origin: string): boolean {
    return this.#origins.has(origin) || this.#origins.has('*');
  }

  /** On every answer, refusals too: a page must be able to read why. Credentials are never allowed: the token is explicit. */
  #cors(head: Head): Record<string, string> {
    if (!this.#options.sendsCors) return NO_HEADERS;
    const expose = { 'access-control-expose-headers': 'WWW-Authenticate, Mcp-Session-Id' };
    if (this.#origins.has('*')) return { 'access-control-allow-origin': '*', ...expose };
    const origin = head.field('origin');
    return {
      vary: 'Origin',
      ...expose,
      ...(origin !== undefined && this.#allows(origin) && { 'access-control-allow-origin': origin }),
    };
  }

  #preflight(head: Head): Answer {
    const asked = (head.field('access-control-request-headers') ?? '').split(',').map((name) => name.trim());
    const parameters = asked.filter((name) => /^mcp-param-[a-z0-9_-]+$/i.test(name));
    return {
      status: 204,
      body: '',
      headers: {
        ...this.#cors(head),
        'access-control-allow-methods': 'GET, HEAD, POST, PUT, PATCH, DELETE',
        'access-control-allow-headers': [...new Set([...PREFLIGHT_HEADERS, this.tokenHeader, ...parameters])].join(
          ', ',
        ),
        'access-control-max-age': '600',
      },
    };
  }
}

// ## Context
// ----------

const EMPTY_USER: AuthUser = Object.freeze(Object.create(null));

/**
 * The claims of the current request's user, deep-frozen; an empty user outside a request and for anonymous ones.
 * `T` types the claims you expect: it is not checked, so list what you rely on in `requiredClaims`.
 */
export function getUser<T = {}>(): AuthUser & T {
  return (context.getStore()?.auth?.user ?? EMPTY_USER) as AuthUser & T;
}

/** The verified token of the current request and what is known of it; undefined for anonymous requests and outside. */
export function getAuth(): Auth | undefined {
  return context.getStore()?.auth;
}

/** The same in the shape of the MCP SDKs; also set as `req.auth`. A new object at every call. */
export function getAuthInfo(): AuthInfo | undefined {
  return describeAuth(context.getStore() ?? NOBODY);
}

function describeAuth({ auth, at: { resource, resourceMetadataUrl } }: Store): AuthInfo | undefined {
  if (!auth) return undefined;
  const { user, token, scopes, expiresAt } = auth;
  const info: AuthInfo = {
    token,
    clientId: [user['client_id'], user['azp'], user.sub].find(isString) ?? '',
    scopes: [...scopes],
    extra: user,
  };
  if (expiresAt !== undefined) info.expiresAt = expiresAt;
  if (resource !== undefined) info.resource = new URL(resource);
  if (resourceMetadataUrl !== undefined) info.resourceMetadataUrl = resourceMetadataUrl;
  return info;
}

// ## Adapters
// -----------

const { emit: plainEmit } = EventEmitter.prototype;
const KEPT = Symbol('mcp-auth-middleware');
type Emitter = (IncomingMessage | ServerResponse) & { [KEPT]?: Kept };
type Emit = (name: string, ...args: unknown[]) => boolean;

/**
 * The context of an emitter's events: listeners would be called in the socket's, so each event is emitted inside the request's, and of
 * several middlewares' the innermost. Never `enterWith`: it outlives the request. Private fields: whoever logs `req` logs no token.
 */
class Kept {
  #store: Store;
  readonly #emit: Emit;

  private constructor(emit: Emit, store: Store) {
    this.#emit = emit;
    this.#store = store;
  }

  static keep(emitter: Emitter, store: Store): void {
    if (emitter[KEPT]) {
      emitter[KEPT].#store = store;
      return;
    }
    emitter[KEPT] = new Kept(emitter.emit, store);
    emitter.emit = Kept.#emitInContext;
  }

  /** One function for all requests: a closure for each would cost as much as the rest of the way here. */
  static #emitInContext(this: Emitter, ...args: Parameters<Emit>): boolean {
    const kept = this[KEPT];
    if (!kept) return false;
    const nobodyListens = args[0] !== 'error' && this.listenerCount(args[0]) === 0; // most events; an error would be thrown
    if (nobodyListens && kept.#emit === plainEmit) return false;
    return context.run(kept.#store, Reflect.apply, kept.#emit, this, args);
  }
}

/** A field among the headers that `writeHead` takes: an object, an array of pairs, or of names and values in turn. */
function findField(headers: unknown, name: string): unknown {
  if (typeof headers !== 'object' || headers === null) return undefined;
  const list: unknown[] = Array.isArray(headers) ? headers : Object.entries(headers);
  const fields = Array.isArray(list[0]) ? list.flat() : list;
  const index = fields.findIndex((field, at) => at % 2 === 0 && isString(field) && field.toLowerCase() === name);
  return index < 0 ? undefined : fields[index + 1];
}

/** Sees the head of the answer as it is sent; Node calls writeHead for implicit heads too. */
function watchHead(res: ServerResponse, watch: NonNullable<Pass['watch']>): void {
  const { writeHead } = res;
  res.writeHead = (...args: unknown[]): ServerResponse => {
    const opened = findField(args.at(-1), 'mcp-session-id') ?? res.getHeader('mcp-session-id');
    watch(Number(args[0]), opened === undefined ? undefined : String(opened));
    return Reflect.apply(writeHead, res, args);
  };
}

type NodeRequest = IncomingMessage & { originalUrl?: string; auth?: AuthInfo | undefined };

const isNamed = (field: string | undefined, name: string): boolean =>
  field?.length === name.length && field.toLowerCase() === name;

/** All fields of a name in one, as HTTP joins them. */
function joinFields(rawHeaders: readonly string[], name: string): string | undefined {
  let joined: string | undefined;
  for (let at = 0; at < rawHeaders.length; at += 2) {
    if (isNamed(rawHeaders[at], name))
      joined = joined === undefined ? rawHeaders[at + 1] : `${joined}, ${rawHeaders[at + 1]}`;
  }
  return joined;
}

function readHead(req: NodeRequest, res: ServerResponse, tokenHeader: string): Head {
  const { method = '', rawHeaders, socket, url = '' } = req;
  const target = req.originalUrl ?? url;
  const query = target.indexOf('?');
  const path = query < 0 ? target : target.slice(0, query);
  const tokens = rawHeaders.filter((_value, at) => at % 2 === 1 && isNamed(rawHeaders[at - 1], tokenHeader)); // `req.headers` keeps one of two
  return {
    method,
    path,
    tokens,
    field: (name) => joinFields(rawHeaders, name),
    onLeave: (leave) => {
      res.once('close', leave);
    },
    socket,
  };
}

/** Carries out a decision: answers, or prepares the request for the handler and returns the context to run it in. */
function act(decision: Decision, req: NodeRequest, res: ServerResponse): Store | undefined {
  if ('status' in decision) {
    const { status, headers, body } = decision;
    res
      .writeHead(status, status === 204 ? headers : { ...headers, 'content-length': Buffer.byteLength(body) })
      .end(body);
    return undefined;
  }
  const { store, headers, watch } = decision;
  for (const [name, value] of headers === NO_HEADERS ? [] : Object.entries(headers)) {
    res.setHeader(name, name === 'vary' && res.hasHeader(name) ? `${res.getHeader(name)}, ${value}` : value);
  }
  if (watch) watchHead(res, watch);
  if (store.auth) req.auth = describeAuth(store);
  Kept.keep(req, store);
  Kept.keep(res, store);
  return store;
}

/** `fail` gets what went wrong here; what the handler throws goes its own way. */
function carryOut(
  decision: Decision,
  req: NodeRequest,
  res: ServerResponse,
  proceed: () => unknown,
  fail: (error: unknown) => void,
): unknown {
  let store: Store | undefined;
  try {
    store = act(decision, req, res);
  } catch (error) {
    return fail(error);
  }
  return store && context.run(store, proceed);
}

function serve(
  gate: Gate,
  req: NodeRequest,
  res: ServerResponse,
  proceed: () => unknown,
  fail: (error: unknown) => void,
): unknown {
  let decision: Decision | Promise<Decision>;
  try {
    decision = gate.decide(readHead(req, res, gate.tokenHeader));
  } catch (error) {
    return fail(error);
  }
  if (!(decision instanceof Promise)) return carryOut(decision, req, res, proceed, fail);
  let left = false;
  res.once('close', () => {
    left = true;
  });
  // From a tick of its own the handler throws as it would without a promise around it: as an uncaught exception.
  return decision
    .then(
      (made) => () => carryOut(made, req, res, proceed, fail),
      (error: unknown) => () => fail(error),
    )
    .then((step) => new Promise((resolve) => process.nextTick(() => resolve(left ? undefined : step()))));
}

/**
 * Wraps a request listener of `node:http`, `https` or `http2`: it runs only for verified users, in their context.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function withAuth(handler: RequestListener, options: AuthOptions = {}): RequestListener {
  if (typeof handler !== 'function')
    refuseOptions('withAuth needs a request listener: withAuth((req, res) => { … }, options)');
  const gate = new Gate(options);
  return function authenticated(this: unknown, req, res) {
    return serve(
      gate,
      req,
      res,
      () => Reflect.apply(handler, this, [req, res]),
      (error) => {
        throw error;
      },
    );
  };
}

/**
 * The same as Connect and Express middleware. Mount it at the root, or the public documents are not found.
 * Unexpected errors go to `next(error)`.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function authMiddleware(
  options: AuthOptions = {},
): (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => void {
  const gate = new Gate(options);
  return (req, res, next) => {
    serve(gate, req, res, () => next(), next);
  };
}

/**
 * The same for servers that answer a `Request` with a `Response`. Sets `request.auth`. A body that is pulled after the
 * handler has returned is outside its context: read the user before.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function withAuthFetch<Rest extends unknown[]>(
  handler: (request: Request, ...rest: Rest) => Response | Promise<Response>,
  options: AuthOptions = {},
): (request: Request, ...rest: Rest) => Promise<Response> {
  if (typeof handler !== 'function')
    refuseOptions('withAuthFetch needs a handler: withAuthFetch((request) => new Response(…), options)');
  const gate = new Gate(options);
  return async (request, ...rest) => {
    const field = (name: string): string | undefined => request.headers.get(name) ?? undefined;
    const tokens = [field(gate.tokenHeader) ?? []].flat();
    const onLeave = (leave: () => void): void => request.signal.addEventListener('abort', leave, { once: true });
    const decision = await gate.decide({
      method: request.method,
      path: new URL(request.url).pathname,
      tokens,
      field,
      onLeave,
      socket: undefined,
    });
    if ('status' in decision) {
      const { status, headers, body } = decision;
      return new Response(request.method === 'HEAD' || body === '' ? null : body, { status, headers });
    }
    if (request.signal.aborted) return new Response(null, { status: 503 });
    const { store, headers, watch } = decision;
    if (store.auth) Object.assign(request, { auth: describeAuth(store) });
    const response = await context.run(store, () => handler(request, ...rest));
    watch?.(response.status, response.headers.get('mcp-session-id') ?? undefined);
    if (headers === NO_HEADERS) return response;
    const open = new Response(response.body, response); // the handler's may be immutable
    for (const [name, value] of Object.entries(headers)) open.headers[name === 'vary' ? 'append' : 'set'](name, value);
    return open;
  };
}
