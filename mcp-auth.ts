/*! mcp-auth-middleware - MIT License (c) 2026 The mcp-auth-middleware maintainers */
/**
 * Authentication for HTTP MCP servers: decrypts `Authorization: Bearer <JWE>` with the server's private RSA key and
 * hands the claims to any code handling the request. One file on `node:` modules alone; copy it or install it.
 *
 * What it guarantees: a handler runs inside the context of exactly the user its token names; every forged or broken
 * token is refused with the same bytes, before the handler (an authentic one is told that it has expired, or is for
 * somebody else); private key members never leave this file.
 * What it does not: on the default level ("encrypted") claims are self-asserted, for whoever can read the public key
 * can mint any claims. Only `trustedIssuers` ("signed and encrypted") says who the user is. A stolen token works until
 * it expires. A request listener never sees `upgrade`, `connect` or `checkContinue`: see {@link bearerToken}.
 * @module
 * @example
 * ```js
 * import { createServer } from 'node:http';
 * import { getUser, withAuth } from 'mcp-auth-middleware';
 *
 * createServer(withAuth((req, res) => {
 *   res.end(`Hello, ${getUser().name}!`);
 * }, { keyFile: '.keys/mcp-private.json' })).listen(3000, '127.0.0.1');
 * ```
 */
import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
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
import { channel } from 'node:diagnostics_channel';
import { EventEmitter } from 'node:events';
import {
  type BigIntStats,
  closeSync,
  constants as files,
  fstatSync,
  openSync,
  readFileSync,
  statfsSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { isIP } from 'node:net';
import { availableParallelism } from 'node:os';
import { resolve as absolute } from 'node:path';
import { nextTick } from 'node:process';
import { clearInterval, clearTimeout, setImmediate, setInterval, setTimeout } from 'node:timers';
import { promisify, TextDecoder } from 'node:util';

// ## Types
// --------

/** Key management algorithms (RFC 7518 §4.3). The key says which one it takes. */
export type RsaAlg = 'RSA-OAEP-256' | 'RSA-OAEP';
/** Signature algorithms of nested tokens; EdDSA means Ed25519 and goes by both names (RFC 8037, RFC 9864). */
export type SignatureAlg = 'RS256' | 'PS256' | 'ES256' | 'EdDSA' | 'Ed25519';

type JwkText = 'kid' | 'alg' | 'use' | 'n' | 'e' | 'd' | 'p' | 'q' | 'dp' | 'dq' | 'qi' | 'crv' | 'x' | 'y';
/** A JSON Web Key (RFC 7517). `iat`, `nbf` and `exp` are NumericDates: seconds since the epoch. */
export interface Jwk extends Partial<Record<JwkText, string>>, Partial<Record<'iat' | 'nbf' | 'exp', number>> {
  kty: string;
  key_ops?: string[];
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
export type Auth = {
  readonly user: AuthUser;
  /** The token as it was received. Never log it. */
  readonly token: string;
  /** True when a trusted issuer signed the claims; false when they are self-asserted. */
  readonly signed: boolean;
  /** The trusted issuer whose key verified the signature. */
  readonly issuer?: string;
  /** `kid` of the key that decrypted the token. */
  readonly keyId: string;
  /** From `scope` (a space-separated string, or an array), else from `scp` (the same). */
  readonly scopes: readonly string[];
  /** NumericDate. */
  readonly expiresAt?: number;
};

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

/** A request whose `auth` the middleware has set; absent for anonymous requests. */
export interface AuthenticatedRequest extends IncomingMessage {
  auth?: AuthInfo;
}

/** An issuer whose signature counts. */
export interface TrustedIssuer {
  /** `iss` of its tokens, compared exactly. */
  issuer: string;
  /** Its public keys; or where to fetch them (https, or http on a loopback host); or a function that gets them. */
  jwks: JwkSet | URL | (() => Promise<JwkSet>);
  /** Overrides {@link VerifierOptions.audience} for its tokens. */
  audience?: string | string[] | undefined;
  algorithms?: SignatureAlg[] | undefined;
  /** The `typ` that its tokens must have, such as `at+jwt`, so that an ID token is no access token (RFC 9068 §4). */
  typ?: string | undefined;
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
  /** Decrypted tokens to remember, default 1000; false for none. */
  cache?: false | { maxEntries: number } | undefined;
  /** New tokens that may wait for decryption, default 256; one more gets 503, and so do 16 times as many requests. */
  maxPending?: number | undefined;
  /** Asked at every use of a token. True refuses it; a rejection, no boolean, or 5 s without an answer is 503. */
  isRevoked?: ((auth: Auth) => boolean | Promise<boolean>) | undefined;
  /** The clock, in seconds since the epoch. */
  now?: (() => number) | undefined;
}

export interface AuthOptions extends VerifierOptions {
  verifier?: JWETokenVerifier | undefined;
  /** Where the public key is served, default `/.well-known/jwks.json`. */
  jwksPath?: string | undefined;
  /** Claims that a user must have; null does not count. */
  requiredClaims?: string[] | undefined;
  requiredScopes?: string[] | undefined;
  /** Lets requests without a token through, with an empty user. */
  anonymous?: boolean | undefined;
  /** Exact raw paths that need no token; one that is brought is ignored. */
  publicPaths?: string[] | undefined;
  /** Name of the header field with the token, default `authorization`. */
  tokenHeader?: string | undefined;
  /** Host names this server is reached by. With it, every other Host but IP literals and localhost is refused. */
  allowedHosts?: string[] | undefined;
  /** Public URL of the MCP endpoint (RFC 9728). */
  resource?: string | undefined;
  /** Public URL of the key set. Default: `jwksPath` at the origin of `resource`. */
  jwksUri?: string | undefined;
  authorizationServers?: string[] | undefined;
  openidConfiguration?: boolean | undefined;
  /** Pages of these origins may call the server. `allowedHeaders` names fields beside those of MCP. */
  cors?: false | { origin: '*' | string[]; allowedHeaders?: string[] } | undefined;
  /** Answers 404 when a session is used by another principal than it belongs to. Default true. */
  bindSessions?: boolean | undefined;
  onEvent?: ((event: AuthEvent) => unknown) | undefined;
}

/** What happened, for logs and metrics. Holds no token, no claim value and no key material. */
export interface AuthEvent {
  readonly type:
    | 'accepted'
    | 'public'
    | 'rejected'
    | 'overloaded'
    | 'failed'
    | 'keys.loaded'
    | 'keys.active'
    | 'keys.failed'
    | 'issuer.fetched'
    | 'issuer.failed';
  /** Why a request was refused. */
  readonly reason?: RefusalReason;
  /** HTTP status of the refusal. */
  readonly status?: number;
  /** Names of the claims and scopes that were missing. */
  readonly missing?: readonly string[];
  /** `kid` of the server's key: the token's, or the one that is published now (`keys.loaded`, `keys.active`). */
  readonly keyId?: string;
  /** Every `kid` of the server's unexpired keys. */
  readonly kids?: readonly string[];
  /** NumericDate at which the next of them expires. */
  readonly nextExpiry?: number;
  readonly issuer?: string;
  readonly anonymous?: boolean;
  readonly signed?: boolean;
  readonly cached?: boolean;
  /** What a key file or an issuer failed with: a KeyErrorCode, the system's code, `timeout` or `status 500`. */
  readonly code?: string;
  /** The same as a sentence. */
  readonly message?: string;
  /** Requests that wait for a decryption, an issuer's keys or `isRevoked`. */
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
  /** An integer beyond 2^53 - 1, which JavaScript would round to another one. */
  unsafe_integer: ['invalid_token', 401, 'The access token is invalid'],
  /** A proof-of-possession claim (RFC 7800), whose proof is not checked here. */
  cnf: ['invalid_token', 401, 'The access token is invalid'],
  /** A signed token whose `typ` is not the one its issuer's option asks for. */
  typ: ['invalid_token', 401, 'The access token is invalid'],
  expired: ['invalid_token', 401, 'The access token has expired'],
  not_yet_valid: ['invalid_token', 401, 'The access token is not valid yet'],
  issuer: ['invalid_token', 401, 'The access token is from another issuer'],
  audience: ['invalid_token', 401, 'The access token is for another audience'],
  revoked: ['invalid_token', 401, 'The access token has been revoked'],
  no_token: ['invalid_token', 401, 'An access token is required'],
  insufficient_scope: ['insufficient_scope', 403, 'The access token lacks a required claim or scope'],
  duplicate_token: ['invalid_request', 400, 'More than one access token was sent'],
  duplicate_field: ['invalid_request', 400, 'Host, Origin or Mcp-Session-Id was sent more than once'],
  session_id: ['invalid_request', 400, 'Mcp-Session-Id must be one value of visible ASCII characters'],
  too_many_fields: ['invalid_request', 431, 'The request has too many header fields'],
  host: ['invalid_request', 403, 'This Host is not allowed; the server sets which are with allowedHosts or resource'],
  origin: ['invalid_request', 403, 'This Origin is not allowed; the server sets which ones are with cors.origin'],
  method: ['invalid_request', 405, 'This document is read with GET or HEAD'],
  session: ['invalid_request', 404, 'Session not found'],
  overloaded: ['temporarily_unavailable', 503, 'Too many new access tokens are waiting; try again'],
  no_key: ['temporarily_unavailable', 503, 'No decryption key is valid at this time; try again'],
  issuer_unavailable: ['temporarily_unavailable', 503, 'The keys of the token issuer cannot be read; try again'],
  revocation_unavailable: ['temporarily_unavailable', 503, 'It is unknown whether the token was revoked; try again'],
  failed: ['server_error', 500, 'The server failed to judge this request'],
} as const;
export type RefusalReason = keyof typeof REFUSALS;

/** A token or request that is refused. `message` is what the client is told; `reason` is for the operator's eyes. */
export class AuthError extends Error {
  override readonly name: string = 'AuthError';
  readonly code: (typeof REFUSALS)[RefusalReason][0];
  /** HTTP status. */
  readonly status: number;
  readonly reason: RefusalReason;
  /** With `insufficient_scope`: the names of the missing claims and scopes. */
  readonly missing: readonly string[];
  /** Of these, the scopes: what a client can ask its authorization server for. */
  readonly missingScopes: readonly string[];
  /** `kid` of the server's key that the token named. */
  readonly keyId: string | undefined;
  constructor(
    reason: RefusalReason,
    about: { missingClaims?: string[]; missingScopes?: string[]; keyId?: string | undefined } = {},
  ) {
    const [code, status, message] = REFUSALS[reason];
    super(message);
    this.code = code;
    this.status = status;
    this.reason = reason;
    this.missingScopes = about.missingScopes ?? [];
    this.missing = [...new Set([...(about.missingClaims ?? []), ...this.missingScopes])];
    this.keyId = about.keyId;
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

/** Every refusal of a key or an option. */
function check(holds: unknown, code: KeyErrorCode, message: string): asserts holds {
  if (!holds) throw new KeyError(code, message);
}

/** Says in front of a refusal what it is about: which file, which key of a set. */
function about<T>(place: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw error instanceof KeyError ? new KeyError(error.code, `${place}: ${error.message}`) : error;
  }
}

// ## Lanes
// --------

/** How many RSA operations run at once. One limit per process, as the thread pool is; one thread stays free. */
const LANES = ((): number => {
  const setting = process.env['UV_THREADPOOL_SIZE'];
  const pool = setting === undefined ? 4 : Math.min(1024, Number.parseInt(setting, 10) || 1); // as libuv reads it
  return Math.max(1, Math.min(availableParallelism() + 1, pool - 1));
})();
let freeLanes = LANES;
const laneQueue: (() => void)[] = [];

/** Runs the task in a lane, first come first served. */
async function inLane<T>(task: () => Promise<T>): Promise<T> {
  if (freeLanes > 0) freeLanes -= 1;
  else await new Promise<void>((start) => laneQueue.push(start));
  try {
    return await task();
  } finally {
    const next = laneQueue.shift();
    if (next) next();
    else freeLanes += 1;
  }
}

// ## Audit surface: bytes
// -----------------------
//
// Everything between a stranger's bytes and "this is the user". The steps of a new token, in this order:
//   1. parseJwe       form, sizes, canonical base64url; the header by allow-list (RFC 7516 §7.1, §4)
//   2. candidateKeys  unexpired keys that its kid and alg allow (RFC 8725 §3.1: the key says its algorithm)
//   3. decryptJwe     RSA-OAEP, then A256GCM with a random CEK where RSA gave none (RFC 7516 §5.2, §11.5)
//   4. isNested       which level the token is of; the other one is refused (RFC 7519 §5.2)
//   5. parseJws, readClaims, pickIssuer, verifyNested   where issuers are trusted: the issuer by iss, its key by kid,
//      the signature, without which the claims count for nothing (RFC 7515 §5.2, RFC 8725 §3.8)
//   6. readClaims, describeToken   types and limits, and the header's copies of claims (RFC 7519 §4.1, §5.3)
//   7. isCurrent, judgeToken   keys, times and audience: again at every use of a known token (RFC 7519 §4.1.3–6)
// Verifier calls them in this order; isRevoked, and the claims and scopes that a server requires, come after them.
// Keys pass importPrivate (RFC 7517, RFC 7518 §6.3) or readVerificationKeys before any of this.

type JsonObject = Record<string, unknown>;

const MAX_TOKEN = 16_384; // octets, also Node's default limit for all header fields of a request
const MAX_HEADER = 2048; // characters of the header segment
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }); // keeps the BOM, and JSON.parse refuses it

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isString = (value: unknown): value is string => typeof value === 'string';
const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
const isText = (value: unknown): value is string => isString(value) && value !== '';
const isNumber = (value: unknown): value is number => Number.isFinite(value);
const isOptional = (is: (value: unknown) => boolean, value: unknown): boolean => value === undefined || is(value);

/** Own members only, so that a polluted Object.prototype adds none. */
const withoutPrototype = <T extends object>(value: T): T => Object.assign(Object.create(null), value);

/** Node's decoder accepts anything; only text that encodes back to itself is canonical (RFC 4648 §3.5, §12). */
function decodeBase64url(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.toString('base64url') === text ? bytes : undefined;
}

/** A JSON object in strict UTF-8. Without a prototype, so that no inherited name is ever taken for a member. */
function parseObject(bytes: Uint8Array): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(utf8.decode(bytes));
    return isObject(value) ? Object.setPrototypeOf(value, null) : undefined;
  } catch {
    return undefined;
  }
}

// ## Audit surface: keys
// ----------------------

interface DecryptionKey extends ReturnType<typeof importPublic> {
  /** Made of kid, alg and modulus: a key that is read again is the same key. */
  id: string;
  /** The private members and no others. */
  privateJwk: Jwk;
  /** CryptoKeys that no operation uses now. The runtime serializes operations on one, so each lane takes its own. */
  idle: webcrypto.CryptoKey[];
  /** When it may be published: nbf, else iat, else at once. */
  start: number;
  /** When it stops decrypting. */
  exp: number;
}

const OAEP = {
  'RSA-OAEP-256': { node: 'sha256', subtle: 'SHA-256' },
  'RSA-OAEP': { node: 'sha1', subtle: 'SHA-1' }, // OAEP needs no collision resistance of its hash (RFC 8017 §B.1)
} as const;
const OAEP_PADDING = constants.RSA_PKCS1_OAEP_PADDING;
const isRsaAlg = (alg: unknown): alg is RsaAlg => alg === 'RSA-OAEP-256' || alg === 'RSA-OAEP';
const MAX_KEYS = 4; // unexpired ones of one algorithm: a forged token without kid costs one RSA operation a key

const PRIVATE_MEMBERS = ['d', 'p', 'q', 'dp', 'dq', 'qi'] as const;
const isPrivate = (jwk: object): boolean => PRIVATE_MEMBERS.some((member) => member in jwk);

/** Says which key of a set a refusal is about, where there is more than one. */
function aboutKey<T>(index: number, count: number, act: () => T): T {
  return count === 1 ? act() : about(`key ${index + 1}`, act);
}

/** The keys of a JWK Set, or the one JWK. */
function listKeys(set: unknown): Jwk[] {
  const keys = isObject(set) && Object.hasOwn(set, 'keys') ? set['keys'] : [set];
  check(Array.isArray(keys) && keys.length > 0, 'malformed', 'must be a JWK Set with at least one key');
  return [...keys].map((jwk: unknown, index) =>
    aboutKey(index, keys.length, () => {
      check(isObject(jwk), 'malformed', 'must be a JWK, a JSON object');
      return withoutPrototype(jwk) as unknown as Jwk;
    }),
  );
}

/** A big-endian integer in canonical form: no leading zero octet (RFC 7518 §2, Base64urlUInt). */
function readUint(jwk: Jwk, member: 'n' | 'e' | (typeof PRIVATE_MEMBERS)[number]): bigint {
  const text: unknown = jwk[member];
  const bytes = isString(text) ? decodeBase64url(text) : undefined;
  const canonical = bytes !== undefined && bytes.length > 0 && bytes[0] !== 0;
  const rule = 'must be a base64url integer without padding or leading zeros; generate a new key';
  check(canonical, 'malformed', `"${member}" ${rule}`);
  return BigInt(`0x${bytes.toString('hex')}`);
}

const THUMBPRINT_MEMBERS = new Map([
  ['RSA', ['e', 'kty', 'n'] as const],
  ['EC', ['crv', 'kty', 'x', 'y'] as const],
  ['OKP', ['crv', 'kty', 'x'] as const],
]);

/** The required public members in lexicographic order (RFC 7638 §3.2). */
function publicMembers(jwk: Jwk): Record<string, string> {
  const names = isObject(jwk) ? THUMBPRINT_MEMBERS.get(jwk.kty) : undefined;
  check(names, 'malformed', 'A thumbprint needs an RSA, EC or OKP key');
  const lacking = names.find((name) => !isString(jwk[name]));
  check(!lacking, 'malformed', `A thumbprint needs all public members of a key: "${lacking}" must be a string`);
  return Object.fromEntries(names.map((name) => [name, jwk[name] ?? '']));
}

/**
 * RFC 7638 thumbprint of an RSA, EC or OKP key: base64url of the SHA-256 of its required public members.
 * @throws KeyError when a member is missing
 */
export function jwkThumbprint(jwk: Jwk): string {
  return hash('sha256', JSON.stringify(publicMembers(jwk)), 'base64url');
}

/** What RSA keys of both kinds must be: 2048 to 8192 bits, e = 65537, no third prime. */
function readModulus(jwk: Jwk): { n: bigint; modulusOctets: number } {
  const n = readUint(jwk, 'n');
  const bits = n.toString(2).length;
  const sized = bits >= 2048 && bits <= 8192;
  check(sized, 'weak', `the modulus has ${bits} bits; use 2048 to 8192 (the command generates 4096)`);
  const sound = n % 2n !== 0n && readUint(jwk, 'e') === 65537n;
  check(sound, 'weak', 'n must be odd and e must be 65537; generate a new key');
  const twoPrimes = !('oth' in jwk);
  check(twoPrimes, 'unsupported', 'keys of more than two primes ("oth") are not supported; generate a new key');
  return { n, modulusOctets: Math.ceil(bits / 8) };
}

/**
 * The public half. What kty, use, key_ops and alg say must agree with what the key is here for; absent alg means
 * RSA-OAEP-256. Built from n and e alone: what is published is never a private JWK less some members.
 */
function importPublic(jwk: Jwk, operations: string[] = ['encrypt', 'wrapKey']) {
  const { kty, use, key_ops: ops, alg = 'RSA-OAEP-256', kid } = jwk;
  check(kty === 'RSA', 'unsupported', '"kty" must be RSA; a key for signatures is none for encryption');
  const forEncryption = use === undefined || use === 'enc';
  check(forEncryption, 'unsupported', '"use" must be enc; a signing key cannot be an encryption key');
  const operable = ops === undefined || (isStrings(ops) && ops.some((op) => operations.includes(op)));
  check(operable, 'unsupported', `"key_ops" must include ${operations.join(' or ')}`);
  check(isRsaAlg(alg), 'unsupported', '"alg" must be RSA-OAEP-256 or RSA-OAEP');
  check(isOptional(isString, kid), 'malformed', '"kid" must be a string');
  const { n: modulus, modulusOctets } = readModulus(jwk);
  const publicKey = createPublicKey({ key: { kty: 'RSA', n: jwk.n ?? '', e: jwk.e ?? '' }, format: 'jwk' });
  const { n = '', e = '' } = publicKey.export({ format: 'jwk' });
  const publicJwk = { kty, n, e, kid: kid ?? jwkThumbprint({ kty, n, e }), alg, use: 'enc' } as const;
  return { kid: publicJwk.kid, alg, modulus, modulusOctets, publicKey, publicJwk };
}

function readTimes(jwk: Jwk): { start: number; exp: number } {
  for (const time of ['iat', 'nbf', 'exp'] as const) {
    check(isOptional(isNumber, jwk[time]), 'malformed', `"${time}" must be a number of seconds since the epoch`);
  }
  return { start: jwk.nbf ?? jwk.iat ?? -Infinity, exp: jwk.exp ?? Infinity };
}

/** OpenSSL loads a key whose d or CRT members do not belong to it; such a key leaks or fails at work. */
function importPrivate(jwk: Jwk): DecryptionKey {
  const known = importPublic(jwk, ['decrypt', 'unwrapKey']);
  check('d' in jwk, 'public_only', 'is a public key; the server needs the private one (mcp-private.json)');
  const primes = PRIVATE_MEMBERS.every((member) => member in jwk);
  const remedy = 'restore it from a backup or generate a new key';
  check(primes, 'malformed', `a private key needs all of d, p, q, dp, dq and qi (RFC 7518 §6.3.2); ${remedy}`);
  const [d, p, q] = [readUint(jwk, 'd'), readUint(jwk, 'p'), readUint(jwk, 'q')];
  const [dp, dq, qi] = [readUint(jwk, 'dp'), readUint(jwk, 'dq'), readUint(jwk, 'qi')];
  const consistent =
    p > 1n &&
    q > 1n &&
    p * q === known.modulus &&
    d < known.modulus &&
    qi < p &&
    dp === d % (p - 1n) &&
    dq === d % (q - 1n) &&
    (d * 65537n) % (p - 1n) === 1n &&
    (d * 65537n) % (q - 1n) === 1n &&
    (qi * q) % p === 1n;
  check(consistent, 'inconsistent', `its members do not belong together; ${remedy}`);
  const { kty, n, e } = known.publicJwk;
  const id = `${known.kid} ${known.alg} ${jwkThumbprint({ kty, n, e })}`;
  const members = Object.fromEntries(PRIVATE_MEMBERS.map((member) => [member, jwk[member]]));
  return { ...known, id, privateJwk: { kty, n, e, ...members }, idle: [], ...readTimes(jwk) };
}

/** What must hold for the keys of a server together. */
function checkSet(keys: readonly DecryptionKey[], now: number): void {
  const named = new Set(keys.map((key) => key.kid));
  check(named.size === keys.length, 'malformed', 'two keys have the same "kid"; rename or remove one');
  for (const alg of Object.keys(OAEP)) {
    const unexpired = keys.filter((key) => key.alg === alg && now < key.exp);
    check(unexpired.length <= MAX_KEYS, 'too_many', `more than four unexpired ${alg} keys; remove the oldest`);
  }
}

function importPrivateSet(set: unknown, now: number): DecryptionKey[] {
  const jwks = listKeys(set);
  const keys = jwks.map((jwk, index) => aboutKey(index, jwks.length, () => importPrivate(jwk)));
  checkSet(keys, now);
  return keys;
}

/** The newest unexpired key whose time has come; when none has (a clock that is behind), the one that comes first. */
function activeKey<K extends { start: number; exp: number }>(keys: readonly K[], now: number): K | undefined {
  const usable = keys.filter((key) => now < key.exp);
  const [newest] = usable.filter((key) => key.start <= now).sort((a, b) => b.start - a.start);
  return newest ?? usable.sort((a, b) => a.start - b.start)[0];
}

// ## Audit surface: JWE
// ---------------------

/** RFC 7516 §7.1. An IV of 12 octets has 16 characters, a tag of 16 has 22. */
const COMPACT_JWE = /^([\w-]+)\.([\w-]*)\.([\w-]{16})\.([\w-]*)\.([\w-]{22})$/;

/** Allow-lists the protected header. `jku`, `x5u`, `jwk`, `x5c` and `p2c` are never looked at, so never used. */
function parseJweHeader(segment: string): JweHeader | undefined {
  const bytes = segment.length <= MAX_HEADER ? decodeBase64url(segment) : undefined;
  const header = bytes && parseObject(bytes);
  if (!header) return undefined;
  const { alg, enc, kid, cty, typ } = header;
  if (!isRsaAlg(alg) || enc !== 'A256GCM') return undefined;
  // No compression oracle, no extension (RFC 8725 §3.6, RFC 7516 §4.1.13).
  if ('zip' in header || 'crit' in header) return undefined;
  if (![kid, cty, typ].every((text) => isOptional(isString, text))) return undefined;
  return withoutPrototype<JweHeader>({ ...header, alg, enc });
}

/** Everything that can be refused without an RSA operation, but for what only the key knows. */
function parseJwe(jwe: unknown) {
  const segments = isString(jwe) && jwe.length <= MAX_TOKEN ? COMPACT_JWE.exec(jwe) : null;
  if (!segments) throw new AuthError('malformed');
  const [, first = '', ...others] = segments;
  const header = parseJweHeader(first);
  const [encryptedKey, iv, ciphertext, tag] = others.map(decodeBase64url);
  if (!header || !encryptedKey || !iv || !ciphertext || !tag) throw new AuthError('malformed');
  return { header, aad: Buffer.from(first, 'ascii'), encryptedKey, iv, ciphertext, tag };
}

type CompactJwe = ReturnType<typeof parseJwe>;

/** The keys a token may be for, the published one first. The modulus gives the length (RFC 8017 §7.1.2). */
function candidateKeys(keys: readonly DecryptionKey[], jwe: CompactJwe, now: number): DecryptionKey[] {
  const { kid, alg } = jwe.header;
  const active = activeKey(keys, now);
  if (!active) throw new AuthError('no_key');
  const usable = keys.filter((key) => now < key.exp);
  const named = kid === undefined ? usable : usable.filter((key) => key.kid === kid);
  if (named.length === 0) throw new AuthError('unknown_key');
  const fitting = named.filter((key) => key.alg === alg && key.modulusOctets === jwe.encryptedKey.length);
  if (fitting.length === 0) throw new AuthError('malformed', { keyId: kid });
  return fitting.sort((a, b) => Number(b === active) - Number(a === active));
}

/** RFC 7516 §11.5: a failed or wrong-sized unwrap goes on with a random CEK, so that only the tag decides. */
async function unwrapKey(key: DecryptionKey, encryptedKey: Uint8Array): Promise<Buffer> {
  const random = randomBytes(32);
  const { subtle } = webcrypto; // off the event loop; node:crypto's privateDecrypt would block it for milliseconds
  const algorithm = { name: 'RSA-OAEP', hash: OAEP[key.alg].subtle };
  const jwk = withoutPrototype(key.privateJwk);
  const cryptoKey = key.idle.pop() ?? (await subtle.importKey('jwk', jwk, algorithm, false, ['decrypt']));
  const cek = await subtle.decrypt(algorithm, cryptoKey, new Uint8Array(encryptedKey)).then(
    (bytes) => Buffer.from(bytes),
    () => random,
  );
  key.idle.push(cryptoKey);
  return cek.length === 32 ? cek : random;
}

function openContent(jwe: CompactJwe, cek: Buffer): Buffer | undefined {
  // Without authTagLength, 4-octet tags pass on Node 20 to 24.
  const decipher = createDecipheriv('aes-256-gcm', cek, jwe.iv, { authTagLength: 16 });
  decipher.setAAD(jwe.aad).setAuthTag(jwe.tag);
  const plaintext = decipher.update(jwe.ciphertext); // not looked at before final() has checked the tag
  try {
    decipher.final();
  } catch {
    return undefined;
  }
  return plaintext;
}

/** Tries the candidates in turn. A lane is held for the RSA operation alone. */
async function decryptJwe(jwe: CompactJwe, candidates: readonly DecryptionKey[]): Promise<[Buffer, DecryptionKey]> {
  for (const key of candidates) {
    const plaintext = openContent(jwe, await inLane(() => unwrapKey(key, jwe.encryptedKey)));
    if (plaintext) return [plaintext, key];
  }
  throw new AuthError('undecryptable', { keyId: jwe.header.kid });
}

// ## Audit surface: JWS
// ---------------------

type BoundAlg = Exclude<SignatureAlg, 'Ed25519'>;
interface VerificationKey {
  /** Made of kid, algorithms and thumbprint: a key that is fetched again is the same key. */
  id: string;
  kid: string;
  algs: readonly BoundAlg[];
  publicKey: KeyObject;
}
const PKCS1 = { padding: constants.RSA_PKCS1_PADDING };
const PSS = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 };
/** Which key a signature algorithm takes and how (RFC 7518 §3, RFC 8037). What is not here, such as `none`, is not. */
const SIGNATURES = {
  RS256: { kty: 'RSA', crv: undefined, digest: 'sha256', options: PKCS1 },
  PS256: { kty: 'RSA', crv: undefined, digest: 'sha256', options: PSS },
  ES256: { kty: 'EC', crv: 'P-256', digest: 'sha256', options: { dsaEncoding: 'ieee-p1363' } },
  EdDSA: { kty: 'OKP', crv: 'Ed25519', digest: null, options: {} },
} as const;
const BOUND_ALGS = Object.keys(SIGNATURES) as BoundAlg[];
const boundAlg = (alg: unknown): BoundAlg | undefined =>
  BOUND_ALGS.find((known) => known === (alg === 'Ed25519' ? 'EdDSA' : alg));

/** The key's own `alg`; without one, the entries of `algorithms` that fit its type, else RS256, ES256 or EdDSA. */
function signatureAlgs(jwk: Jwk, operation: 'sign' | 'verify', algorithms?: readonly SignatureAlg[]): BoundAlg[] {
  const { kty, crv, use, key_ops: ops, alg } = jwk;
  check(use === undefined || use === 'sig', 'unsupported', '"use" is not sig');
  const operable = ops === undefined || (isStrings(ops) && ops.includes(operation));
  check(operable, 'unsupported', `"key_ops" lacks ${operation}`);
  const fitting = BOUND_ALGS.filter((name) => SIGNATURES[name].kty === kty && SIGNATURES[name].crv === crv);
  check(fitting.length > 0, 'unsupported', '"kty" and "crv" are none of RSA, EC P-256 and OKP Ed25519');
  const own = alg === undefined ? fitting : fitting.filter((name) => name === boundAlg(alg));
  check(own.length > 0, 'unsupported', '"alg" is not RS256, PS256, ES256 or EdDSA, or does not fit the key');
  const allowed = algorithms?.map(boundAlg);
  const bound = allowed ? own.filter((name) => allowed.includes(name)) : own.slice(0, 1);
  check(bound.length > 0, 'unsupported', 'its algorithm is not in "algorithms"');
  return bound;
}

function importVerificationKey(jwk: Jwk, algorithms?: readonly SignatureAlg[]): VerificationKey {
  check(!('d' in jwk) && !('k' in jwk), 'private', 'is a private or secret key');
  check(isOptional(isString, jwk.kid), 'malformed', '"kid" is not a string');
  const algs = signatureAlgs(jwk, 'verify', algorithms);
  if (jwk.kty === 'RSA') readModulus(jwk);
  const members = publicMembers(jwk);
  const coordinates = [members['x'], members['y']].filter(isString);
  const sized = coordinates.every((text) => decodeBase64url(text)?.length === 32);
  check(sized, 'malformed', 'a coordinate is not 32 octets in base64url');
  const { kid = jwkThumbprint(jwk) } = jwk;
  try {
    const publicKey = createPublicKey({ key: { ...members }, format: 'jwk' });
    return { id: `${kid} ${algs.join()} ${jwkThumbprint(jwk)}`, kid, algs, publicKey };
  } catch {
    throw new KeyError('inconsistent', 'is no key that OpenSSL can load'); // a point that is not on the curve
  }
}

/** The usable keys of an issuer's set by id. Foreign, encryption and unsound keys are skipped; a refusal says why. */
function readVerificationKeys(set: unknown, algorithms?: readonly SignatureAlg[]): Map<string, VerificationKey> {
  check(isObject(set) && Array.isArray(set['keys']), 'malformed', 'is not a JWK Set, an object with an array "keys"');
  const skipped: string[] = [];
  const usable = set['keys'].flatMap((jwk: unknown, index): VerificationKey[] => {
    try {
      check(isObject(jwk), 'malformed', 'is not a JSON object');
      return [importVerificationKey(withoutPrototype(jwk) as unknown as Jwk, algorithms)];
    } catch (error) {
      if (!(error instanceof KeyError)) throw error;
      skipped.push(`key ${index + 1}: ${error.message}`);
      return [];
    }
  });
  const reasons = skipped.slice(0, 5).join('; ') || 'it is empty';
  check(usable.length > 0, 'unsupported', `has no usable key for signatures (${reasons})`);
  return new Map(usable.map((key) => [key.id, key]));
}

const COMPACT_JWS = /^([\w-]+)\.([\w-]*)\.([\w-]+)$/; // RFC 7515 §7.1

function parseJws(bytes: Buffer) {
  const [, first = '', second = '', third = ''] = COMPACT_JWS.exec(bytes.toString('latin1')) ?? [];
  const [head, payload, signature] = [first, second, third].map(decodeBase64url);
  const header = head && parseObject(head);
  if (!header || !payload || !signature) throw new AuthError('signature');
  const alg = boundAlg(header['alg']);
  const { kid, cty, typ } = header;
  // crit: no extension is understood (RFC 7515 §4.1.11). cty: a second nesting is never opened.
  if (!alg || 'crit' in header || cty !== undefined) throw new AuthError('signature');
  if ((kid !== undefined && !isString(kid)) || (typ !== undefined && !isString(typ))) throw new AuthError('signature');
  return { alg, kid, typ, signingInput: Buffer.from(`${first}.${second}`, 'latin1'), payload, signature };
}

type CompactJws = ReturnType<typeof parseJws>;

/** The keys that the token's kid and alg allow. A token that names no key is verified only where exactly one fits. */
function fittingKeys(jws: CompactJws, keys: ReadonlyMap<string, VerificationKey>): VerificationKey[] {
  const fitting = [...keys.values()].filter((key) => key.algs.includes(jws.alg));
  if (jws.kid !== undefined) return fitting.filter((key) => key.kid === jws.kid);
  return fitting.length === 1 ? fitting : [];
}

function verifySignature(jws: CompactJws, key: VerificationKey): boolean {
  const { digest, options } = SIGNATURES[jws.alg];
  try {
    return verify(digest, jws.signingInput, { key: key.publicKey, ...options }, jws.signature);
  } catch {
    return false;
  }
}

// ## Audit surface: claims
// ------------------------

/** A frozen copy without prototypes. At most 32 levels, 1,000 values, and numbers that stay what they were. */
function freezeJson(value: unknown, budget: { nodes: number }, depth = 1): unknown {
  budget.nodes -= 1;
  if (budget.nodes < 0) throw new AuthError('claims');
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw new AuthError('claims'); // 1e999
    // A rounded id is another user's (RFC 7493 §2.2).
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw new AuthError('unsafe_integer');
  }
  if (typeof value !== 'object' || value === null) return value;
  if (depth > 32) throw new AuthError('claims');
  if (Array.isArray(value)) return Object.freeze(value.map((item) => freezeJson(item, budget, depth + 1)));
  // Unlike Object.create(null), no slow dictionary for whoever reads a claim.
  const copy: JsonObject = Object.setPrototypeOf({}, null);
  for (const [name, member] of Object.entries(value)) copy[name] = freezeJson(member, budget, depth + 1);
  return Object.freeze(copy);
}

/** The claims set (RFC 7519 §4) of an authenticated plaintext: types here, times and audience at every use. */
function readClaims(plaintext: Uint8Array): AuthUser {
  const object = parseObject(plaintext);
  if (!object) throw new AuthError('claims');
  const claims = freezeJson(object, { nodes: 1000 }) as AuthUser;
  const { exp, nbf, iat, aud, iss, sub, jti } = claims;
  const valid =
    [exp, nbf, iat].every((time) => isOptional(isNumber, time)) &&
    [iss, sub, jti].every((text) => isOptional(isString, text)) &&
    (aud === undefined || isString(aud) || isStrings(aud));
  if (!valid) throw new AuthError('claims');
  // The issuer meant the token for whoever proves a key (RFC 7800 §3.1), and nobody asks for that proof here.
  if ('cnf' in claims) throw new AuthError('cnf');
  return claims;
}

/** What must hold for every token of a server. */
interface TokenRules {
  clockTolerance: number;
  maxTokenAge: number | undefined;
  requireExp: boolean;
  claimsMember: string | undefined;
  /** Of tokens that no issuer signed. Empty: only a token that says for whom it is must be for this server. */
  audience: readonly string[];
}

/** A trusted issuer as its tokens are judged by it. */
interface Issuer {
  readonly name: string;
  readonly audience: readonly string[];
  readonly typ: string | undefined;
  readonly keys: ReadonlyMap<string, VerificationKey>;
  isUsable(now: number): boolean;
}

/** An authentic token. What can change with time or with the keys is judged at every use. */
interface VerifiedToken {
  readonly auth: Auth;
  /** The whole claims set; with `claimsMember`, `auth.user` is a member of it. */
  readonly claims: AuthUser;
  /** `id` of the server's key. */
  readonly keyId: string;
  readonly signer: { readonly issuer: Issuer; readonly keyId: string } | undefined;
}

/** The level of the token. Neither reads the other's: no unsigned where issuers are trusted, no signed unverified. */
function isNested(header: JweHeader, issuers: ReadonlyMap<string, Issuer>): boolean {
  const nested = /^jwt$/i.test(header.cty ?? ''); // RFC 7519 §5.2
  if (nested !== issuers.size > 0) throw new AuthError('signature');
  return nested;
}

/** The inner `iss` picks the issuer and nothing else: it is judged as authentic only under that issuer's signature. */
function pickIssuer<I extends Issuer>(claims: AuthUser, issuers: ReadonlyMap<string, I>): I {
  if (claims.iss === undefined) throw new AuthError('claims');
  const issuer = issuers.get(claims.iss);
  if (!issuer) throw new AuthError('issuer');
  return issuer;
}

/** `typ` is compared without case and without `application/` (RFC 7515 §4.1.9). */
const mediaType = (typ: string | undefined): string | undefined => typ?.toLowerCase().replace(/^application\//, '');

/** The key that verifies the signature. */
function verifyNested(jws: CompactJws, issuer: Issuer): VerificationKey {
  const key = fittingKeys(jws, issuer.keys).find((one) => verifySignature(jws, one));
  if (!key) throw new AuthError('signature');
  // RFC 8725 §3.11: an ID token or a logout token of the same issuer is no access token.
  if (issuer.typ !== undefined && mediaType(jws.typ) !== mediaType(issuer.typ)) throw new AuthError('typ');
  return key;
}

/** Scopes of a token: `scope` is a string, or an array as some issuers send it; else `scp`. */
function readScopes({ scope, scp }: AuthUser): readonly string[] {
  const value = isString(scope) || isStrings(scope) ? scope : scp;
  const scopes = isString(value) ? value.split(' ') : Array.isArray(value) ? value : [];
  return Object.freeze(scopes.filter(isText));
}

/** Users whose claims are frozen to the bottom, for runAs. */
const verifiedUsers = new WeakSet<object>();

/** What an authentic token says: its user, and that the header's copies of claims are true (RFC 7519 §5.3). */
function describeToken(
  token: string,
  header: JweHeader,
  key: DecryptionKey,
  { claims, signer }: Pick<VerifiedToken, 'claims' | 'signer'>,
  claimsMember: string | undefined,
): VerifiedToken {
  for (const name of ['iss', 'sub', 'aud']) {
    const copied = header[name] === undefined || JSON.stringify(header[name]) === JSON.stringify(claims[name]);
    if (!copied) throw new AuthError('claims');
  }
  const user = claimsMember === undefined ? claims : claims[claimsMember];
  if (!isObject(user) || !isOptional(isString, user['sub'])) throw new AuthError('claims');
  const auth: Auth = {
    user,
    token,
    signed: signer !== undefined,
    keyId: key.kid,
    scopes: readScopes(user),
    ...(signer && { issuer: signer.issuer.name }),
    ...(claims.exp !== undefined && { expiresAt: claims.exp }),
  };
  verifiedUsers.add(user);
  return { auth: Object.freeze(auth), claims, keyId: key.id, signer };
}

/** Whether the keys still stand for a token: the server's is there and unexpired, the issuer's not withdrawn. */
function isCurrent({ keyId, signer }: VerifiedToken, keys: ReadonlyMap<string, DecryptionKey>, now: number): boolean {
  const key = keys.get(keyId);
  if (!key || now >= key.exp) return false;
  return !signer || (signer.issuer.keys.has(signer.keyId) && signer.issuer.isUsable(now));
}

function judgeTimes({ exp, nbf, iat }: AuthUser, rules: TokenRules, now: number): void {
  const { clockTolerance, maxTokenAge, requireExp } = rules;
  if (requireExp && exp === undefined) throw new AuthError('claims');
  if (maxTokenAge !== undefined && iat === undefined) throw new AuthError('claims');
  if (exp !== undefined && iat !== undefined && exp <= iat) throw new AuthError('claims');
  // "On or after" (RFC 7519 §4.1.4).
  if (exp !== undefined && now >= exp + clockTolerance) throw new AuthError('expired');
  if (nbf !== undefined && now < nbf - clockTolerance) throw new AuthError('not_yet_valid');
  if (iat !== undefined && now < iat - clockTolerance) throw new AuthError('not_yet_valid');
  if (maxTokenAge !== undefined && iat !== undefined && now - iat > maxTokenAge + clockTolerance) {
    throw new AuthError('expired');
  }
}

function judgeAudience({ aud }: AuthUser, expected: readonly string[]): void {
  const named: readonly string[] = isString(aud) ? [aud] : (aud ?? []);
  if (!named.some((one) => expected.includes(one))) throw new AuthError('audience');
}

/**
 * Times and audience, for new tokens and known ones alike.
 * @param resource who the server is, for tokens of which no audience is demanded: if they name one it must be this
 */
function judgeToken(token: VerifiedToken, rules: TokenRules, resource: readonly string[], now: number): void {
  judgeTimes(token.claims, rules, now);
  const demanded = token.signer ? token.signer.issuer.audience : rules.audience;
  if (token.signer || demanded.length > 0) judgeAudience(token.claims, demanded);
  else if (resource.length > 0 && token.claims.aud !== undefined) judgeAudience(token.claims, resource);
}

// End of the audit surface.

// ## Producing
// ------------

/** The JWK Set of a server: the key that is published now. */
function publish(keys: readonly Pick<DecryptionKey, 'start' | 'exp' | 'publicJwk'>[], now: number): JwkSet {
  const active = activeKey(keys, now);
  return { keys: active ? [{ ...active.publicJwk }] : [] };
}

/**
 * The key a server would publish now (the newest unexpired one whose `nbf` has come), with public members only.
 * @param set private or public keys
 * @throws KeyError when the set holds anything but sound RSA encryption keys
 */
export function publicJwks(set: JwkSet | Jwk): JwkSet {
  const now = Date.now() / 1000;
  return about('JWK Set', () => {
    const jwks = listKeys(set);
    if (jwks.some(isPrivate)) return publish(importPrivateSet(set, now), now);
    const keys = jwks.map((jwk, index) =>
      aboutKey(index, jwks.length, () => ({ ...importPublic(jwk), ...readTimes(jwk) })),
    );
    return publish(keys, now);
  });
}

const oaep = (alg: RsaAlg, key: KeyObject) => ({ key, padding: OAEP_PADDING, oaepHash: OAEP[alg].node });
const UNSOUND = 'does not decrypt what it encrypts; restore it from a backup or generate a new key';

/** Proves that the key decrypts what its public half encrypts, which no arithmetic on composite "primes" would. */
function selfTest(key: DecryptionKey): void {
  const probe = randomBytes(32);
  let decrypts = false;
  try {
    const privateKey = createPrivateKey({ key: { ...key.privateJwk }, format: 'jwk' });
    decrypts = privateDecrypt(oaep(key.alg, privateKey), publicEncrypt(oaep(key.alg, key.publicKey), probe)).equals(
      probe,
    );
  } catch {
    // OpenSSL's text says nothing to a user
  }
  check(decrypts, 'inconsistent', UNSOUND);
}

const importedSets = new WeakMap<object, { text: string; keys: DecryptionKey[] }>();

/**
 * Decrypts a JWE in compact serialization (RFC 7516 §7.1), RSA-OAEP-256 or RSA-OAEP as the key says, with A256GCM.
 * Calls wait for the process's lanes without a limit: bound them where strangers can cause them.
 * @param keys a private JWK, or a private JWK Set whose unexpired keys are tried
 * @throws AuthError (a rejection) the same for whatever is wrong with the token; KeyError for unsound keys
 */
export async function compactDecrypt(
  jwe: string,
  keys: RsaPrivateJwk | JwkSet,
): Promise<{ plaintext: Uint8Array; protectedHeader: JweHeader }> {
  const now = Date.now() / 1000;
  // The checks cost milliseconds, and the text says when they are due again.
  const text = JSON.stringify(keys) ?? '';
  let known = isObject(keys) ? importedSets.get(keys) : undefined;
  if (known?.text !== text) {
    known = { text, keys: about('JWK Set', () => importPrivateSet(keys, now)) };
    importedSets.set(keys, known);
  }
  const parsed = parseJwe(jwe);
  const [plaintext] = await decryptJwe(parsed, candidateKeys(known.keys, parsed, now));
  return { plaintext: new Uint8Array(plaintext), protectedHeader: parsed.header };
}

/** A misspelt option must not give an unsigned or a longer-lived token. */
function checkNames(what: string, given: object, known: readonly string[]): void {
  check(isObject(given), 'option', `${what} must be an object`);
  const unknown = Object.keys(given).find((name) => !known.includes(name));
  check(unknown === undefined, 'option', `${what}: unknown option "${unknown}"; there are ${known.join(', ')}`);
}

const isAudience = (value: unknown): value is string | string[] =>
  isText(value) || (isStrings(value) && value.length > 0 && value.every(isText));

const generateRsaPair = promisify(generateRsa);

/**
 * Makes an RSA pair off the main thread: seconds at 4096 bits.
 * @param options `modulusLength` in bits (4096), `alg` (RSA-OAEP-256)
 * @throws KeyError for a size or algorithm outside the lists, or an unknown option
 */
export async function generateKeyPair(
  options: { modulusLength?: 2048 | 3072 | 4096; alg?: RsaAlg } = {},
): Promise<{ privateJwk: RsaPrivateJwk; publicJwk: RsaPublicJwk }> {
  checkNames('generateKeyPair', options, ['modulusLength', 'alg']);
  const { modulusLength = 4096, alg = 'RSA-OAEP-256' } = options;
  check([2048, 3072, 4096].includes(modulusLength), 'option', 'modulusLength must be 2048, 3072 or 4096');
  check(isRsaAlg(alg), 'option', 'alg must be RSA-OAEP-256 or RSA-OAEP');
  // Through DER: on Node 20 the JWK export of a fresh key can deadlock with the collector.
  const { privateKey } = await generateRsaPair('rsa', {
    modulusLength,
    publicExponent: 65537,
    publicKeyEncoding: { type: 'spki', format: 'der' },
    privateKeyEncoding: { type: 'pkcs8', format: 'der' },
  });
  const exported = createPrivateKey({ key: privateKey, type: 'pkcs8', format: 'der' }).export({ format: 'jwk' });
  const { publicJwk, privateJwk } = importPrivate({ ...exported, kty: 'RSA', alg });
  return {
    privateJwk: { ...privateJwk, ...publicJwk, iat: Math.floor(Date.now() / 1000) } as RsaPrivateJwk,
    publicJwk,
  };
}

/** A public key to encrypt to. Whoever holds a private one by mistake must hear of it. */
function importRecipient(jwk: Jwk) {
  const remedy = "only its owner may hold it: use the public one (mcp-public.json, or the server's JWKS)";
  check(!isPrivate(jwk), 'private', `is a private key; ${remedy}`);
  return importPublic(jwk);
}

/**
 * Encrypts to a JWE in compact serialization, with A256GCM and the key's own algorithm.
 * @param jwk the recipient's public key
 * @param header `cty` and `typ` to say what the plaintext is
 * @throws KeyError for an unsound or a private key, or another header parameter
 */
export function compactEncrypt(
  plaintext: Uint8Array,
  jwk: RsaPublicJwk,
  header: { cty?: string; typ?: string } = {},
): string {
  checkNames('compactEncrypt header', header, ['cty', 'typ']);
  const key = about('recipient', () => {
    check(isObject(jwk), 'malformed', 'must be a JWK, a JSON object');
    return importRecipient(withoutPrototype(jwk));
  });
  const { alg, kid } = key;
  const { cty, typ } = header;
  check(isOptional(isString, cty) && isOptional(isString, typ), 'option', 'cty and typ must be strings');
  const aad = Buffer.from(JSON.stringify({ alg, enc: 'A256GCM', kid, cty, typ })).toString('base64url');
  check(aad.length <= MAX_HEADER, 'malformed', 'kid, cty and typ are too long: no server takes a header of their size');
  const cek = randomBytes(32);
  const iv = randomBytes(12);
  const encryptedKey = publicEncrypt(oaep(key.alg, key.publicKey), cek);
  const cipher = createCipheriv('aes-256-gcm', cek, iv, { authTagLength: 16 }).setAAD(Buffer.from(aad, 'ascii'));
  const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()]);
  const segments = [encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'));
  return [aad, ...segments].join('.');
}

/** Of a set the key that is published now, among those fit for encryption; a private key anywhere in it is refused. */
function pickRecipient(recipient: RsaPublicJwk | JwkSet): RsaPublicJwk {
  return about('recipient', () => {
    const jwks = listKeys(recipient);
    const secret = jwks.find(isPrivate);
    if (secret) importRecipient(secret);
    let refusal: unknown;
    const usable = jwks.flatMap((jwk, index) => {
      try {
        return [aboutKey(index, jwks.length, () => ({ ...importRecipient(jwk), ...readTimes(jwk) }))];
      } catch (error) {
        refusal ??= error;
        return [];
      }
    });
    const active = activeKey(usable, Date.now() / 1000);
    check(active || refusal, 'expired', 'every key has expired; fetch the JWK Set of the server again');
    if (!active) throw refusal;
    return active.publicJwk;
  });
}

const signOffThread = promisify(sign);

/** Signs off the event loop and verifies: a private key whose public members are another's must not go unnoticed. */
async function compactSign(payload: Buffer, jwk: PrivateSigningJwk): Promise<string> {
  const { key, alg } = about('sign.key', () => {
    const { kty, n, e, crv, x, y, kid, alg: own } = jwk;
    check(isText(jwk.d), 'unsupported', 'must be a private JWK for signatures: RSA, EC on P-256 or OKP Ed25519');
    const [bound] = signatureAlgs(jwk, 'sign');
    const members = withoutPrototype({ kty, n, e, crv, x, y, kid, alg: bound }) as Jwk;
    return { key: importVerificationKey(members), alg: own ?? bound };
  });
  const [bound = 'EdDSA'] = key.algs;
  const header = JSON.stringify({ alg, kid: key.kid, typ: 'JWT' });
  const segments = [Buffer.from(header), payload].map((part) => part.toString('base64url'));
  const signingInput = Buffer.from(segments.join('.'));
  const { digest, options } = SIGNATURES[bound];
  let token: string | undefined;
  try {
    const privateKey = createPrivateKey({ key: { ...jwk }, format: 'jwk' });
    const signature = await signOffThread(digest, signingInput, { key: privateKey, ...options });
    const jws = { alg: bound, kid: key.kid, typ: 'JWT', signingInput, payload, signature };
    if (verifySignature(jws, key)) token = `${signingInput}.${signature.toString('base64url')}`;
  } catch {
    // OpenSSL's text says nothing to a user
  }
  const remedy = 'restore it from a backup or generate a new key';
  check(token, 'inconsistent', `sign.key: does not sign what its public members verify; ${remedy}`);
  return token;
}

/** The claims as a server would read them, or a TypeError: better here than a token that nobody takes. */
function encodeClaims(claims: object, isSigned: boolean): Buffer {
  const payload = Buffer.from(JSON.stringify(claims));
  const refusal = 'No server takes these claims:';
  let read: AuthUser;
  try {
    read = readClaims(payload);
  } catch {
    throw new TypeError(
      `${refusal} iss, sub and jti are strings, aud a string or strings, exp, nbf and iat numbers; ` +
        'integers stay within 2^53 - 1; at most 32 levels and 1,000 values; no cnf',
    );
  }
  const { aud, exp, iat } = read;
  if (exp !== undefined && iat !== undefined && exp <= iat) throw new TypeError(`${refusal} exp must be after iat`);
  if (isSigned && (exp === undefined || !isAudience(aud)))
    throw new TypeError(`${refusal} a signed token needs an exp and an aud`);
  return payload;
}

/** What {@link encryptToken} takes beside claims and recipient. */
export interface EncryptTokenOptions {
  /** Seconds, 3600; null for a token without `exp`. */
  expiresIn?: number | null;
  /** An issuer's private JWK, its `iss`, and the server that the token is for. */
  sign?: { key: PrivateSigningJwk; issuer: string; audience: string | string[] };
}

/**
 * Mints a token as a producer does: claims, encrypted to the server's public key, and signed before that with `sign`.
 * Sets `iat`, `exp` and `kid`, and with `sign` also `iss` and `aud`; claims given win.
 * @param recipient a public key, or a JWK Set: of that, the key that is published now
 * @throws KeyError for an unsound or private recipient, an unsound signing key or an unknown option; TypeError for
 * claims that no server would take
 */
export async function encryptToken(
  claims: object,
  recipient: RsaPublicJwk | JwkSet,
  options: EncryptTokenOptions = {},
): Promise<string> {
  checkNames('encryptToken', options, ['expiresIn', 'sign']);
  const { expiresIn, sign: signing } = options;
  if (!isObject(claims)) throw new TypeError('claims must be an object');
  if (signing !== undefined) {
    checkNames('sign', signing, ['key', 'issuer', 'audience']);
    const complete = isObject(signing.key) && isText(signing.issuer) && isAudience(signing.audience);
    check(complete, 'unsupported', 'sign needs a key (a private JWK for signatures), an issuer and an audience');
  }
  // As JSON.stringify would ask, which below would leave nothing but this answer.
  const own: unknown = typeof claims['toJSON'] === 'function' ? claims['toJSON']() : claims;
  if (!isObject(own)) throw new TypeError('claims must be an object, also after its toJSON()');
  const isStated = (value: unknown): boolean => value !== undefined && typeof value !== 'function';
  const stated = Object.fromEntries(Object.entries(own).filter(([, value]) => isStated(value)));
  if ('exp' in stated && expiresIn !== undefined)
    throw new TypeError('Give either the claim exp or expiresIn, not both');
  if (!isOptional((value) => value === null || (isNumber(value) && value > 0), expiresIn)) {
    throw new TypeError('expiresIn must be a positive number of seconds, or null');
  }
  const jwk = pickRecipient(recipient);
  const iat = Math.floor(Date.now() / 1000);
  const times = expiresIn === null ? { iat } : { iat, exp: iat + (expiresIn ?? 3600) };
  const who = signing && { iss: signing.issuer, aud: signing.audience };
  const payload = encodeClaims({ ...who, ...times, ...stated }, signing !== undefined);
  const token = signing
    ? compactEncrypt(Buffer.from(await compactSign(payload, signing.key)), jwk, { cty: 'JWT' })
    : compactEncrypt(payload, jwk);
  const limit = `servers take at most ${MAX_TOKEN}: put less into the claims`;
  if (token.length > MAX_TOKEN) throw new TypeError(`The token would have ${token.length} characters; ${limit}`);
  return token;
}

// ## Events
// ---------

/** What goes with a request: its user, and what getAuthInfo() says of the server. */
interface RequestContext {
  readonly auth: Auth | undefined;
  readonly resource?: string | undefined;
  readonly resourceMetadataUrl?: string | undefined;
}
const NOBODY: RequestContext = Object.freeze({ auth: undefined });

/** Two copies of this file in one process, such as a bundler's, share the context. Its shape is fixed for version 1. */
const SHARED: unique symbol = Symbol.for('mcp-auth-middleware/1');
const shared = globalThis as { [SHARED]?: AsyncLocalStorage<RequestContext> };
const context = (shared[SHARED] ??= new AsyncLocalStorage<RequestContext>());

const loading = new AsyncResource('mcp-auth-middleware');
/** In nobody's context, and in other storages' as when this file was loaded: what outlives a request keeps none. */
const outside = <T>(act: () => T): T => loading.runInAsyncScope(() => context.run(NOBODY, act));

const warned = new Set<string>();
/** A process warning, once for each different text. */
function warnOnce(code: string, message: string): void {
  if (warned.has(message) || warned.size > 1000) return;
  warned.add(message);
  process.emitWarning(message, { code, type: 'McpAuthWarning' });
}

/** Paths, names and kids as a terminal may see them: control characters could hide what a message says. */
const printable = (text: string): string =>
  text.replace(
    /[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );

type Listener = (event: AuthEvent) => unknown;
const diagnostics = channel('mcp-auth-middleware');

/** In nobody's context. A listener that fails changes no answer. */
function notify(listener: Listener, event: AuthEvent): void {
  const failed = (): void =>
    warnOnce('MCP_AUTH_ON_EVENT', 'onEvent threw or rejected; authentication goes on without it');
  try {
    Promise.resolve(context.run(NOBODY, listener, event)).catch(failed);
  } catch {
    failed();
  }
}

/** Tells listeners and the diagnostics channel. */
function tell(listeners: readonly Listener[], event: AuthEvent): void {
  if (listeners.length === 0 && !diagnostics.hasSubscribers) return;
  Object.freeze(event);
  for (const listener of listeners) notify(listener, event);
  if (diagnostics.hasSubscribers) context.run(NOBODY, () => diagnostics.publish(event));
}

/** Where an exception of our own came from, for the operator. Its text may quote what it was thrown over. */
function warnOfFault(error: unknown): void {
  const { name = '', message = '', stack = '' } = error instanceof Error ? error : {};
  const trace = String(stack).slice(message === '' ? 0 : String(stack).lastIndexOf(message) + message.length);
  const [, place = 'an unknown place'] = /\n\s+at ([^\n]*:\d+:\d+\)?)/.exec(trace) ?? [];
  const kind = /^[A-Za-z]{1,40}$/.test(name) ? name : 'an exception';
  warnOnce('MCP_AUTH_FAILED', `mcp-auth-middleware failed and answered 500: ${kind} at ${printable(place)}`);
}

// ## Key sets
// -----------

/** The promise's result, or what `late` gives after so many milliseconds. */
async function within<T>(ms: number, promise: Promise<T>, late: () => T): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  try {
    return await Promise.race([promise, timeout.then(late)]);
  } finally {
    clearTimeout(timer);
  }
}

/** What is looked at again and again. */
interface Refreshed {
  tick(): void;
}
const refreshed = new Set<WeakRef<Refreshed>>();
let ticking: NodeJS.Timeout | undefined;
/** Looks at key files, one at a time in this process: four that hang would take the thread pool, RSA with it. */
let looks: Promise<void> = Promise.resolve();
/** The one under way; its age in ticks, which are seconds without those in which the process was frozen. */
let look: { owner: object; ticks: number; hangs: boolean } | undefined;

function tickAll(): void {
  if (look) {
    look.ticks += 1;
    look.hangs ||= look.ticks > 1;
  }
  for (const reference of refreshed) {
    const owner = reference.deref();
    if (!owner) refreshed.delete(reference);
    try {
      owner?.tick();
    } catch (error) {
      warnOfFault(error); // such as a clock of the user's that throws: no reason to end the process
    }
  }
  if (refreshed.size > 0) return;
  clearInterval(ticking);
  ticking = undefined;
}

/** One timer for the process, once a second. It keeps neither the process nor an owner alive. */
function keepFresh(owner: Refreshed): void {
  refreshed.add(new WeakRef(owner));
  ticking ??= outside(() => setInterval(tickAll, 1000));
  ticking.unref();
}

type Failure = AuthEvent & { message: string };
/** Says a failure when it begins or changes, and once a minute while it lasts. Called without one when it is over. */
function reportFailures(code: string, report: (event: AuthEvent) => void): (failure?: Failure) => void {
  let message = '';
  let said = 0;
  return (failure) => {
    if (failure && (failure.message !== message || performance.now() - said >= 60_000)) {
      said = performance.now();
      report(failure);
      warnOnce(code, failure.message);
    }
    message = failure?.message ?? '';
  };
}

const MAX_KEY_FILE = 1_048_576; // octets; four 8192-bit keys have 26,000
const OPEN_FLAGS = files.O_RDONLY | (files.O_NONBLOCK ?? 0); // a FIFO must not hang the server
/** FAT, exFAT, NTFS, SMB, 9P, FUSE and VirtualBox shares, whose modes are made up (statfs(2)). */
const WITHOUT_MODES = new Set([
  0x4d44, 0x2011bab0, 0x5346544e, 0x517b, 0xff534d42, 0xfe534d42, 0x01021997, 0x65735546, 0x786f4256,
]);

/** Where everybody could read the private keys, if the file has any. */
function warnOfMode(path: string, { mode }: BigIntStats, jwks: readonly Jwk[]): void {
  if ((mode & 0o004n) === 0n || !jwks.some(isPrivate)) return;
  try {
    if (process.platform === 'win32' || WITHOUT_MODES.has(statfsSync(path).type >>> 0)) return;
  } catch {
    // gone meanwhile: its mode was true
  }
  const remedy = 'chmod 600 (or 440 with a group of its own)';
  warnOnce(
    'MCP_AUTH_KEY_FILE_MODE',
    `Every user of this machine can read the private keys in ${printable(path)}: ${remedy}`,
  );
}

/** What tells one state of a file from another, through a Kubernetes symlink swap as well. Refuses what is no file. */
function describeFile(path: string, stat: BigIntStats): string {
  const regular = stat.isFile() && stat.size <= MAX_KEY_FILE;
  check(regular, 'unreadable', `${printable(path)}: must be a regular file of at most 1 MiB`);
  return [stat.mtimeNs, stat.ctimeNs, stat.size, stat.ino, stat.dev].join();
}

/** The JWKs of a key file. */
function parseKeyFile(path: string, text: Buffer): Jwk[] {
  const shown = printable(path);
  const marked = text.subarray(0, 3).equals(Buffer.from([0xef, 0xbb, 0xbf]));
  check(!marked, 'malformed', `${shown}: starts with a byte order mark (BOM); save it as UTF-8 without one`);
  const set = parseObject(text);
  const remedy = 'generate keys with "mcp-auth-middleware generate"';
  check(set, 'malformed', `${shown}: is not a JSON object in UTF-8; ${remedy}`);
  const jwks = about(shown, () => listKeys(set));
  if (jwks.some(({ alg }) => alg === undefined)) {
    const advice = 'for producers that send RSA-OAEP add "alg": "RSA-OAEP" to it';
    warnOnce('MCP_AUTH_KEY_ALG', `A key in ${shown} has no "alg" and is taken as RSA-OAEP-256; ${advice}`);
  }
  return jwks;
}

/** The system's code of an error or of what caused it, such as ENOTFOUND. */
function codeOf(error: unknown): string {
  for (let cause = error, depth = 0; isObject(cause) && depth < 4; cause = cause['cause'], depth += 1) {
    if (cause['name'] === 'TimeoutError') return 'timeout';
    if (isText(cause['code'])) return cause['code'];
    if (cause['message'] === 'bad port') return 'bad port'; // which fetch blocks, without a code
  }
  return error instanceof Error && isText(error.name) ? error.name : 'unknown';
}

/** What a failure to read means to the operator. */
function unreadable(path: string, error: unknown): KeyError {
  if (error instanceof KeyError) return error;
  const code = codeOf(error);
  const shown = printable(path);
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    const remedy = 'make one with "mcp-auth-middleware generate", or set MCP_KEY_FILE_PATH or keyFile';
    return new KeyError('missing', `${shown}: no such key file; ${remedy}`);
  }
  return new KeyError('unreadable', `${shown}: cannot be read (${code}); the server's user needs read permission`);
}

/** The server's private keys: all decrypt until they expire, one is published. A file is looked at once a second. */
class DecryptionKeys implements Refreshed {
  keys: readonly DecryptionKey[] = [];
  byId: ReadonlyMap<string, DecryptionKey> = new Map();
  readonly #path: string | undefined;
  readonly #now: () => number;
  readonly #report: (event: AuthEvent) => void;
  readonly #failure: (failure?: Failure) => void;
  /** State of the file that was last read with success. */
  #seen = '';
  /** When the last look began. */
  #begun: number;
  #active: string | undefined;
  #nextExpiry = Infinity;
  /** The look that is under way or has to wait for another one. */
  #looking: Promise<void> | undefined;
  #catchingUp: Promise<void> | undefined;

  /** Throws unless there is a usable key: a server without one must not start. */
  constructor(source: { keys: unknown } | { path: string }, now: () => number, report: (event: AuthEvent) => void) {
    this.#now = now;
    this.#report = report;
    this.#failure = reportFailures('MCP_AUTH_KEY_FILE', report);
    this.#begun = now();
    this.#path = 'path' in source ? source.path : undefined;
    const place = this.#path === undefined ? 'keys' : printable(this.#path);
    const set = 'path' in source ? { keys: this.#readAtStart(source.path) } : source.keys;
    const keys = about(place, () => importPrivateSet(set, this.#begun));
    about(place, () => keys.forEach((key, index) => aboutKey(index, keys.length, () => selfTest(key))));
    this.#use(keys, this.#begun);
    check(this.#active !== undefined, 'expired', `${place}: every key has expired; generate new ones`);
    // Without a file there is only the change of the active key to tell: no timer where there is none.
    if (this.#path !== undefined || keys.length > 1 || keys.some(({ exp }) => exp !== Infinity)) keepFresh(this);
  }

  /** What a request waits for, 1 s at most: a process that was frozen or whose clock was set looks first. */
  catchUp(now: number): Promise<void> | undefined {
    if (this.#path === undefined || this.#catchingUp) return this.#catchingUp;
    if (Math.abs(now - this.#begun) <= 10 || look?.hangs) return undefined;
    const path = this.#path;
    // A look that is under way began before the freeze.
    const again = (this.#looking ?? Promise.resolve()).then(() => this.#lookSoon(path));
    const late = (): void => {
      if (look) look.hangs = true;
    };
    this.#catchingUp = within(1000, again, late).finally(() => {
      this.#catchingUp = undefined;
    });
    return this.#catchingUp;
  }

  tick(): void {
    const now = this.#now();
    const before = this.#active;
    this.#active = activeKey(this.keys, now)?.kid;
    if (this.#active !== before) this.#report({ ...this.describe(now), type: 'keys.active' });
    else if (now >= this.#nextExpiry) this.#report(this.describe(now));
    if (this.#path === undefined) return;
    // After a freeze the timer may come before the requests, which then wait for its look.
    if (!this.catchUp(now)) void this.#lookSoon(this.#path);
    if (!look || look.ticks <= 5) return;
    const sentence = look.owner === this ? 'has not answered for 5 s' : 'waits for another key file, which hangs';
    this.#failed(new KeyError('unreadable', `${printable(this.#path)}: ${sentence}; the last good keys go on`));
  }

  /** The keys in use. Said again when one expires, so that a listener always knows which is next. */
  describe(now: number): AuthEvent {
    const unexpired = this.keys.filter(({ exp }) => exp > now);
    const nextExpiry = (this.#nextExpiry = Math.min(...unexpired.map(({ exp }) => exp)));
    return {
      type: 'keys.loaded',
      kids: Object.freeze(unexpired.map(({ kid }) => kid)),
      ...(this.#active !== undefined && { keyId: this.#active }),
      ...(nextExpiry !== Infinity && { nextExpiry }),
    };
  }

  /** When its turn comes. The queue keeps no verifier that nobody uses. */
  #lookSoon(path: string): Promise<void> {
    const owner = new WeakRef(this);
    this.#looking ??= looks = looks.then(() => {
      const keys = owner.deref();
      return keys && keys.#look(path);
    });
    return this.#looking;
  }

  /** Never rejects: after a bad file the last good keys go on. */
  async #look(path: string): Promise<void> {
    look = { owner: this, ticks: 0, hangs: false };
    try {
      this.#begun = this.#now();
      const changed = await outside(() => this.#reload(path));
      this.#failure();
      if (changed) this.#report(this.describe(this.#now()));
    } catch (error) {
      this.#failed(unreadable(path, error));
    } finally {
      look = undefined;
      this.#looking = undefined;
    }
  }

  #failed({ code, message }: KeyError): void {
    this.#failure({ type: 'keys.failed', code, message });
  }

  #readAtStart(path: string): Jwk[] {
    for (let attempt = 1; ; attempt += 1) {
      let fd: number | undefined;
      try {
        fd = openSync(path, OPEN_FLAGS);
        const stat = fstatSync(fd, { bigint: true });
        this.#seen = describeFile(path, stat);
        const jwks = parseKeyFile(path, readFileSync(fd));
        warnOfMode(path, stat, jwks);
        return jwks;
      } catch (error) {
        // A file that `rotate` is just destroying has a successor of the same name.
        if (attempt === 2 || !(error instanceof KeyError)) throw unreadable(path, error);
      } finally {
        if (fd !== undefined) closeSync(fd);
      }
    }
  }

  /** Whether there was anything new. Requests see the old keys or the new ones. */
  async #reload(path: string): Promise<boolean> {
    const file = await open(path, OPEN_FLAGS);
    let jwks: Jwk[];
    let seen: string;
    try {
      const stat = await file.stat({ bigint: true });
      seen = describeFile(path, stat);
      if (seen === this.#seen) return false;
      jwks = parseKeyFile(path, await file.readFile());
      warnOfMode(path, stat, jwks);
    } finally {
      await file.close();
    }
    const keys: DecryptionKey[] = [];
    for (const [index, jwk] of jwks.entries()) {
      await new Promise((resolve) => setImmediate(resolve)); // the checks of a key take milliseconds
      keys.push(await this.#import(jwk, printable(jwks.length === 1 ? path : `${path}: key ${index + 1}`)));
    }
    const now = this.#now();
    about(printable(path), () => checkSet(keys, now));
    this.#use(keys, now);
    this.#seen = seen;
    return true;
  }

  /** A key that is in use already keeps its CryptoKeys; a new one is tested, off the event loop. */
  async #import(jwk: Jwk, place: string): Promise<DecryptionKey> {
    const key = about(place, () => importPrivate(jwk));
    const known = this.byId.get(key.id);
    if (known && PRIVATE_MEMBERS.every((member) => known.privateJwk[member] === jwk[member])) {
      return { ...key, idle: known.idle };
    }
    const probe = randomBytes(32);
    const encrypted = publicEncrypt(oaep(key.alg, key.publicKey), probe);
    const decrypts = probe.equals(await inLane(() => unwrapKey(key, encrypted)));
    check(decrypts, 'inconsistent', `${place}: ${UNSOUND}`);
    return key;
  }

  #use(keys: readonly DecryptionKey[], now: number): void {
    this.keys = keys;
    this.byId = new Map(keys.map((key) => [key.id, key]));
    this.#active = activeKey(keys, now)?.kid;
  }
}

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host);

/** GET, without redirects, in at most 5 s and 512 KiB. */
async function fetchSet(url: URL): Promise<unknown> {
  const signal = AbortSignal.timeout(5000);
  const accept = 'application/jwk-set+json, application/json';
  const response = await fetch(url, { redirect: 'manual', signal, headers: { accept } });
  if (response.status !== 200) {
    await response.body?.cancel();
    throw Object.assign(new Error('no JWK Set'), { code: `status ${response.status}` });
  }
  const chunks: Uint8Array[] = [];
  let octets = 0;
  const write = (chunk: Uint8Array): void => {
    octets += chunk.length;
    check(octets <= 524_288, 'malformed', 'the JWK Set has more than 512 KiB');
    chunks.push(chunk);
  };
  // With the signal once more: the fetch of Node 20 and 22 loses it to the garbage collection while a body arrives.
  await response.body?.pipeTo(new WritableStream({ write }), { signal });
  return parseObject(Buffer.concat(chunks));
}

/** The public keys of one trusted issuer: given, or fetched and kept for ten minutes, and for 24 h while it is down. */
class IssuerKeys implements Issuer, Refreshed {
  readonly name: string;
  readonly audience: readonly string[];
  readonly typ: string | undefined;
  keys: ReadonlyMap<string, VerificationKey> = new Map();
  readonly #algorithms: readonly SignatureAlg[] | undefined;
  readonly #source: URL | (() => Promise<unknown>) | undefined;
  readonly #now: () => number;
  readonly #report: (event: AuthEvent) => void;
  readonly #failure: (failure?: Failure) => void;
  /** When the last good set was asked for, any set was, and one was for an unknown kid. */
  #fetched = -Infinity;
  #tried = -Infinity;
  #askedForKid = -Infinity;
  /** The same as #tried by the clock that nobody sets, for the timer. */
  #ticked = -Infinity;
  #failing = false;
  #fetching: Promise<void> | undefined;

  constructor(
    trusted: TrustedIssuer,
    audience: readonly string[],
    now: () => number,
    report: (event: AuthEvent) => void,
  ) {
    const { issuer, jwks, algorithms, typ } = trusted;
    this.name = issuer;
    this.audience = audience;
    this.typ = typ;
    this.#algorithms = algorithms;
    this.#now = now;
    this.#report = report;
    this.#failure = reportFailures('MCP_AUTH_ISSUER', report);
    if (jwks instanceof URL) this.#source = new URL(jwks);
    else if (typeof jwks === 'function') this.#source = jwks;
    if (this.#source) keepFresh(this);
    else this.keys = about(`trustedIssuers: ${issuer}: "jwks"`, () => this.#readGiven(jwks));
  }

  isUsable(now: number): boolean {
    return !this.#source || (this.keys.size > 0 && Math.abs(now - this.#fetched) < 86_400);
  }

  /**
   * What a verdict has to wait for, of known tokens too, or a withdrawn key would be accepted for longer than ten
   * minutes. While the issuer is down the last good set goes on without waiting, and the timer asks again.
   */
  update(now: number): Promise<void> | undefined {
    if (!this.#source) return undefined;
    if (this.isUsable(now)) {
      if (this.#failing || Math.abs(now - this.#fetched) <= 600) return undefined;
    } else if (!this.#fetching && Math.abs(now - this.#tried) <= 1) return undefined;
    return this.#fetching ?? this.#fetch();
  }

  /** For a token whose key is not in the set: every 30 s at most, since such tokens cost their sender nothing. */
  refresh(now: number): Promise<void> | undefined {
    if (!this.#source || this.#fetching) return this.#fetching;
    if (Math.abs(now - this.#askedForKid) < 30) return undefined;
    this.#askedForKid = now;
    return this.#fetch();
  }

  tick(): void {
    const due = performance.now() - this.#ticked >= (this.#failing ? 10_000 : 300_000);
    if (due && !this.#fetching) void this.#fetch();
  }

  #readGiven(jwks: unknown): Map<string, VerificationKey> {
    const given = listKeys(jwks);
    const secret = given.some((jwk) => 'd' in jwk || 'k' in jwk);
    check(!secret, 'private', 'holds a private or secret key; give the public keys only');
    return readVerificationKeys({ keys: given }, this.#algorithms);
  }

  /** Never rejects. Outside: a connection that a user's request opened would carry that user. */
  #fetch(): Promise<void> {
    const now = this.#now();
    const started = performance.now();
    this.#tried = now;
    this.#ticked = started;
    this.#fetching = outside(() => this.#read())
      .then((keys) => {
        this.keys = keys;
        this.#fetched = now;
        this.#failing = false;
        this.#failure();
        this.#report({ type: 'issuer.fetched', issuer: this.name, durationMs: performance.now() - started });
      })
      .catch((error: unknown) => this.#failed(error, started))
      .finally(() => {
        this.#fetching = undefined;
      });
    return this.#fetching;
  }

  async #read(): Promise<Map<string, VerificationKey>> {
    const source = this.#source;
    const late = (): never => {
      throw Object.assign(new Error('no answer'), { code: 'timeout' });
    };
    const set = source instanceof URL ? await fetchSet(source) : await within(5000, Promise.resolve(source?.()), late);
    return readVerificationKeys(set, this.#algorithms);
  }

  #failed(error: unknown, started: number): void {
    this.#failing = true;
    let [code, cause] = ['unknown', 'unknown'];
    try {
      const isRefusal = error instanceof KeyError;
      code = isRefusal ? 'malformed' : codeOf(error);
      cause = isRefusal ? error.message : code;
      // It has answered, and lists no key that could be used: those that it listed before are withdrawn.
      if (isRefusal && error.code === 'unsupported') this.keys = new Map();
    } catch {
      // a function of the user's may throw what throws when it is looked at
    }
    const source = this.#source instanceof URL ? this.#source.origin + this.#source.pathname : 'the function "jwks"';
    const message = printable(`The keys of the issuer ${this.name} cannot be read from ${source}: ${cause}`);
    const durationMs = performance.now() - started;
    this.#failure({ type: 'issuer.failed', issuer: this.name, code, message, durationMs });
  }
}

// ## Options
// ----------

type Rule = readonly [test: (value: unknown) => boolean, expected: string];

const isListOf =
  (is: (value: unknown) => boolean, least = 0) =>
  (value: unknown): boolean =>
    Array.isArray(value) && value.length >= least && value.every(is);
const isBetween =
  (least: number, most: number) =>
  (value: unknown): boolean =>
    Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most;
const isBoolean = (value: unknown): value is boolean => typeof value === 'boolean';
const isFunction = (value: unknown): boolean => typeof value === 'function';
const isRawPath = (value: unknown): boolean => isString(value) && /^\/[\x21-\x7e]*$/.test(value) && !/[?#]/.test(value);
const isHttpUrl = (value: unknown): value is string =>
  isText(value) && URL.canParse(value) && /^https?:$/.test(new URL(value).protocol) && !/[#"\\\s]/.test(value);
/** What carries keys or trust: nobody on the way may swap it. */
const isSecureUrl = (url: URL): boolean =>
  (url.protocol === 'https:' || (url.protocol === 'http:' && isLoopback(url.hostname))) &&
  !url.username &&
  !url.password;
/** RFC 8414 §2: no query and no fragment. */
const isIssuerUrl = (value: unknown): boolean =>
  isHttpUrl(value) && !value.includes('?') && isSecureUrl(new URL(value));
/** As a browser sends it: of http in canonical form, of an extension or a web view as it is. */
const isOrigin = (value: unknown): boolean =>
  isHttpUrl(value)
    ? new URL(value).origin === value && !value.includes('*')
    : isString(value) && /^(?!https?:)[a-z][a-z\d+.-]*:\/\/[^\s/?#"\\,*]+$/i.test(value);
/** An RFC 6749 §3.3 scope-token, which can stand in a challenge. */
const isScopeToken = (value: unknown): boolean => isString(value) && /^[\x21\x23-\x5b\x5d-\x7e]+$/.test(value);
const isFieldName = (value: unknown): boolean => isString(value) && /^[!#$%&'*+.^_`|~0-9a-z-]+$/i.test(value);
const isCache = (value: unknown): boolean =>
  value === false ||
  (isObject(value) && Object.keys(value).join() === 'maxEntries' && isBetween(1, 1_000_000)(value['maxEntries']));
const isCors = (value: unknown): boolean => {
  if (value === false) return true;
  if (!isObject(value) || !Object.keys(value).every((name) => ['origin', 'allowedHeaders'].includes(name)))
    return false;
  const { origin, allowedHeaders } = withoutPrototype(value);
  return (origin === '*' || isListOf(isOrigin)(origin)) && isOptional(isListOf(isFieldName), allowedHeaders);
};

const AUDIENCE: Rule = [isAudience, 'a string or an array of strings'];
const ISSUER_OPTIONS: Record<keyof TrustedIssuer, Rule> = {
  issuer: [isText, 'the iss of its tokens'],
  jwks: [
    (value) => isFunction(value) || (value instanceof URL ? isSecureUrl(value) : isObject(value)),
    'a JWK Set, a URL object (https, or http on a loopback host), or a function that returns a promise of a JWK Set',
  ],
  audience: AUDIENCE,
  algorithms: [isListOf((alg) => boundAlg(alg) !== undefined, 1), 'an array of RS256, PS256, ES256, EdDSA'],
  typ: [isText, 'a media type such as "at+jwt"'],
};
const VERIFIER_OPTIONS: Record<keyof VerifierOptions, Rule> = {
  keyFile: [isText, 'a path'],
  keys: [isObject, 'a private JWK Set'],
  trustedIssuers: [isListOf(isObject, 1), 'an array of { issuer, jwks }'],
  audience: AUDIENCE,
  clockTolerance: [(value) => isNumber(value) && value >= 0 && value <= 300, 'a number of seconds from 0 to 300'],
  maxTokenAge: [(value) => isNumber(value) && value > 0, 'a positive number of seconds'],
  requireExp: [isBoolean, 'a boolean'],
  claimsMember: [isText, 'the name of a claim'],
  cache: [isCache, 'false or { maxEntries: 1 to 1,000,000 }'],
  maxPending: [isBetween(0, 1_000_000), 'an integer from 0 to 1,000,000'],
  isRevoked: [isFunction, 'a function that returns a boolean or a promise of one'],
  now: [isFunction, 'a function that returns seconds'],
};

/** Checks every option and returns a copy that no later change to `options`, and no polluted prototype, reaches. */
function readOptions<T extends object>(options: T, rules: Record<keyof T, Rule>, where = ''): T {
  const prototype: unknown = isObject(options) && Object.getPrototypeOf(options);
  // What a class or a prototype adds would be dropped, and with it what it demands.
  const plain = prototype === null || (isObject(prototype) && Object.getPrototypeOf(prototype) === null);
  check(plain, 'option', `${where}options must be a plain object`);
  const copy: JsonObject = Object.create(null);
  for (const [name, value] of Object.entries(options)) {
    const rule: Rule | undefined = Object.hasOwn(rules, name) ? rules[name as keyof T] : undefined;
    if (!rule && name === 'concurrency') {
      warnOnce('MCP_AUTH_OPTION', 'Option "concurrency" is gone and ignored; UV_THREADPOOL_SIZE (cores + 2) decides');
      continue;
    }
    check(rule, 'option', `${where}unknown option "${name}"; there are ${Object.keys(rules).join(', ')}`);
    check(isOptional(rule[0], value), 'option', `${where}option "${name}" must be ${rule[1]}`);
    if (value !== undefined) copy[name] = Array.isArray(value) ? [...value] : value;
  }
  return copy as T;
}

const toArray = (value: string | string[] | undefined): string[] => (isString(value) ? [value] : [...(value ?? [])]);

function importIssuers(
  options: VerifierOptions,
  now: () => number,
  report: (event: AuthEvent) => void,
): Map<string, IssuerKeys> {
  const issuers = (options.trustedIssuers ?? []).map((given) => readOptions(given, ISSUER_OPTIONS, 'trustedIssuers: '));
  const complete = issuers.every(({ issuer, jwks }) => issuer && jwks);
  check(complete, 'option', 'trustedIssuers: option "issuer" and option "jwks" are both needed');
  const names = new Set(issuers.map(({ issuer }) => issuer));
  check(names.size === issuers.length, 'option', 'option "trustedIssuers" names an issuer twice');
  return new Map(
    issuers.map((trusted) => {
      const expected = toArray(trusted.audience ?? options.audience);
      // Otherwise another recipient could re-encrypt a signed token to this server.
      const rule = 'a signed token must say that it is for this server';
      check(expected.length > 0, 'option', `option "trustedIssuers" needs option "audience" or "resource": ${rule}`);
      return [trusted.issuer, new IssuerKeys(trusted, expected, now, report)];
    }),
  );
}

// ## Verifier
// -----------

/** Least recently used entries with owners. Who owns more than `share` gives up the oldest before others lose one. */
class OwnedCache<V> {
  readonly #entries = new Map<string, { owner: string; value: V; octets: number }>();
  readonly #owned = new Map<string, Set<string>>();
  /** Owners of more than their share. */
  readonly #large = new Set<string>();
  readonly #limits: { entries: number; octets: number; share: number; strict: boolean };
  #octets = 0;
  /** The one used last, which is in its place. */
  #newest: string | undefined;

  /** @param limits `strict`: nobody has more than a share even while there is room */
  constructor(limits: { entries: number; octets: number; share: number; strict: boolean }) {
    this.#limits = limits;
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  get(id: string): V | undefined {
    const entry = this.#entries.get(id);
    if (!entry || id === this.#newest) return entry?.value;
    this.#newest = id;
    this.#entries.delete(id);
    this.#entries.set(id, entry);
    const own = this.#owned.get(entry.owner);
    if (own?.delete(id)) own.add(id);
    return entry.value;
  }

  set(id: string, owner: string, value: V, octets = 0): void {
    this.delete(id);
    this.#newest = id;
    const own = this.#owned.get(owner) ?? new Set();
    this.#entries.set(id, { owner, value, octets });
    this.#owned.set(owner, own.add(id));
    this.#octets += octets;
    const { entries, octets: most, share, strict } = this.#limits;
    if (own.size > share) this.#large.add(owner);
    while (this.#entries.size > entries || this.#octets > most || (strict && own.size > share)) {
      const [large] = own.size > share ? [owner] : this.#large;
      const [oldest] = (large === undefined ? undefined : this.#owned.get(large)) ?? this.#entries.keys();
      if (oldest === undefined) return;
      this.delete(oldest);
    }
  }

  delete(id: string): void {
    const entry = this.#entries.get(id);
    if (!entry) return;
    this.#entries.delete(id);
    this.#octets -= entry.octets;
    const own = this.#owned.get(entry.owner);
    own?.delete(id);
    if (!own || own.size <= this.#limits.share) this.#large.delete(entry.owner);
    if (own?.size === 0) this.#owned.delete(entry.owner);
  }
}

/** Whose an Mcp-Session-Id is: of the principal to whom an answer first named it, else of the one who uses it first. */
class Sessions {
  readonly #owners = new OwnedCache<string>({ entries: 10_000, octets: Infinity, share: 100, strict: true });

  /** Binds an unknown session, never a known one again. Returns whose it is. */
  bind(id: string, principal: string): string {
    const key = id.length > 64 ? `sha256 ${hash('sha256', id, 'base64url')}` : id;
    const owner = this.#owners.get(key);
    if (owner === undefined) this.#owners.set(key, principal, principal);
    return owner ?? principal;
  }
}

/** Members of objects in one order, so that equal claims give equal text. */
const sortMembers = (_name: string, value: unknown): unknown =>
  isObject(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value;

/** Whose a session is: (signed, iss, outer sub, sub), or without any sub the claims that a refreshed token keeps. */
function principalOf({ auth: { user, signed }, claims }: VerifiedToken): string {
  const { exp: _exp, iat: _iat, nbf: _nbf, jti: _jti, ...lasting } = user;
  const nameless = claims.sub === undefined && user.sub === undefined;
  const who = nameless ? JSON.stringify(lasting, sortMembers) : [claims.sub ?? null, user.sub ?? null];
  return hash('sha256', JSON.stringify([signed, claims.iss ?? null, who]), 'base64url');
}

interface KnownToken extends VerifiedToken {
  readonly principal: string;
}

/** The same refusal with the key that the token was for. */
const withKeyId = (error: unknown, keyId: string | undefined): unknown =>
  error instanceof AuthError && error.keyId === undefined ? new AuthError(error.reason, { keyId }) : error;

/** Cache, single flight, decryption, signature, claims: the one way from a token to its user. */
class Verifier {
  readonly keys: DecryptionKeys;
  readonly sessions: Sessions = new Sessions();
  /** Whether only signed tokens pass. */
  readonly signed: boolean;
  readonly #now: () => number;
  readonly #issuers: Map<string, IssuerKeys>;
  readonly #rules: TokenRules;
  readonly #isRevoked: VerifierOptions['isRevoked'];
  readonly #cache: OwnedCache<KnownToken> | undefined;
  /** Tokens under way by SHA-256: one decryption for all requests that bring the same one meanwhile. */
  readonly #verifying = new Map<string, Promise<KnownToken>>();
  readonly #maxOperations: number;
  readonly #listeners: Listener[] = [];
  #operations = 0;
  #waiting = 0;

  constructor(given: VerifierOptions) {
    const options = readOptions(given, VERIFIER_OPTIONS);
    const { keys, keyFile, trustedIssuers, requireExp = trustedIssuers !== undefined } = options;
    const { clockTolerance = 30, maxTokenAge, claimsMember, cache = { maxEntries: 1000 }, maxPending = 256 } = options;
    check(!keys || keyFile === undefined, 'option', 'option "keys" and option "keyFile" exclude each other');
    const lasting = trustedIssuers && !requireExp;
    check(!lasting, 'option', 'option "requireExp" cannot be false with "trustedIssuers"');
    const path = keyFile ?? process.env['MCP_KEY_FILE_PATH'];
    const remedy = 'set MCP_KEY_FILE_PATH or option "keyFile"; make a key file with "mcp-auth-middleware generate"';
    check(keys || path, 'missing', `No private key: ${remedy}`);
    this.#now = options.now ?? ((): number => Date.now() / 1000);
    this.#rules = { clockTolerance, maxTokenAge, requireExp, claimsMember, audience: toArray(options.audience) };
    this.#isRevoked = options.isRevoked;
    const limits = { octets: 4_194_304, share: 16, strict: false };
    this.#cache = cache ? new OwnedCache({ entries: cache.maxEntries, ...limits }) : undefined;
    this.#maxOperations = maxPending + LANES;
    const report = (event: AuthEvent): void => tell(this.#listeners, event);
    this.#issuers = importIssuers(options, () => this.now(), report);
    this.signed = this.#issuers.size > 0;
    this.keys = new DecryptionKeys(keys ? { keys } : { path: absolute(path ?? '') }, () => this.now(), report);
    report(this.keys.describe(this.now()));
    const advice = 'Set trustedIssuers unless another layer authenticates the caller';
    const asserted = 'Tokens are encrypted but not signed: whoever can read the public key can claim to be anyone';
    if (!this.signed) warnOnce('MCP_AUTH_SELF_ASSERTED', `${asserted}. ${advice}`);
  }

  /** Seconds since the epoch. No number at all would let every comparison with a time pass. */
  now(): number {
    const now = this.#now();
    check(isNumber(now), 'option', 'option "now" must return a number of seconds');
    return now;
  }

  /** Tells the listener of every key change, beginning with the keys that are in use. */
  subscribe(listener: Listener): void {
    this.#listeners.push(listener);
    notify(listener, Object.freeze(this.keys.describe(this.now())));
  }

  /** Requests that wait, for whatever. */
  get pending(): number {
    return this.#waiting;
  }

  /** An unexpired key, and with issuers at least one whose keys are usable. */
  isReady(): boolean {
    const now = this.now();
    const usable = !this.signed || [...this.#issuers.values()].some((issuer) => issuer.isUsable(now));
    return usable && activeKey(this.keys.keys, now) !== undefined;
  }

  isKnown(id: string): boolean {
    return this.#cache?.has(id) === true;
  }

  identify(token: string): string {
    if (token.length > MAX_TOKEN) throw new AuthError('malformed');
    return hash('sha256', token, 'base64url');
  }

  /**
   * At once for a known token, which never waits behind unknown ones; a promise otherwise.
   * @param id `identify(token)`
   * @param resource who the server is, for tokens that need not name an audience
   * @throws AuthError either way
   */
  admit(id: string, token: string, resource: readonly string[], now: number): KnownToken | Promise<KnownToken> {
    const known = this.#cache?.get(id);
    const issuer = known?.auth.issuer === undefined ? undefined : this.#issuers.get(known.auth.issuer);
    const update = issuer?.update(now);
    if (known && !update && this.#isCurrent(id, known, now)) return this.#judge(known, resource, now);
    const judge = (verified: KnownToken): KnownToken | Promise<KnownToken> =>
      this.#judge(verified, resource, this.now(), true);
    if (known && update) {
      const again = (): KnownToken | Promise<KnownToken> =>
        this.#isCurrent(id, known, this.now()) ? known : this.#verifyOnce(id, token)();
      return this.wait(() => update.then(again).then(judge));
    }
    const verify = this.#verifyOnce(id, token);
    // Throws at once where there is no room: a flood must not make promises.
    return this.wait(() => verify().then(judge));
  }

  /** Counts who waits, so that whatever hangs holds a bounded number of requests. */
  wait<T>(start: () => Promise<T>): Promise<T> {
    if (this.#waiting >= 16 * this.#maxOperations) throw new AuthError('overloaded');
    const promise = start();
    this.#waiting += 1;
    return promise.finally(() => {
      this.#waiting -= 1;
    });
  }

  #isCurrent(id: string, known: KnownToken, now: number): boolean {
    const current = isCurrent(known, this.keys.byId, now);
    if (!current) this.#cache?.delete(id);
    return current;
  }

  /** @param counted whether the request is among those that wait already */
  #judge(
    token: KnownToken,
    resource: readonly string[],
    now: number,
    counted = false,
  ): KnownToken | Promise<KnownToken> {
    this.#judgeNow(token, resource, now);
    const answer = this.#isRevoked ? this.#askRevoked(token, this.#isRevoked) : token;
    if (typeof answer !== 'function') return answer;
    const ask = async (): Promise<KnownToken> => {
      await answer();
      // Meanwhile the token or its key may have expired.
      const { keyId } = token.auth;
      if (!isCurrent(token, this.keys.byId, this.now())) throw new AuthError('unknown_key', { keyId });
      this.#judgeNow(token, resource, this.now());
      return token;
    };
    return counted ? ask() : this.wait(ask);
  }

  #judgeNow(token: KnownToken, resource: readonly string[], now: number): void {
    try {
      judgeToken(token, this.#rules, resource, now);
    } catch (error) {
      throw withKeyId(error, token.auth.keyId);
    }
  }

  /** The token if it is not revoked, or what waits for that answer. */
  #askRevoked(token: KnownToken, isRevoked: NonNullable<VerifierOptions['isRevoked']>) {
    const { keyId } = token.auth;
    const decide = (answer: unknown): KnownToken => {
      if (answer === true) throw new AuthError('revoked', { keyId });
      if (answer !== false) throw new AuthError('revocation_unavailable', { keyId });
      return token;
    };
    let answer: unknown;
    try {
      answer = isRevoked(token.auth);
    } catch {
      // no answer
    }
    if (isBoolean(answer)) return decide(answer);
    const asked = Promise.resolve(answer).catch(() => undefined);
    return () => within(5000, asked, () => undefined).then(decide);
  }

  /** Refuses what needs no decryption; what it returns starts the one decryption, or joins it. */
  #verifyOnce(id: string, token: string): () => Promise<KnownToken> {
    const running = this.#verifying.get(id);
    if (running) return () => running;
    const jwe = parseJwe(token);
    const candidates = candidateKeys(this.keys.keys, jwe, this.now());
    return () => {
      if (this.#operations >= this.#maxOperations) throw new AuthError('overloaded');
      this.#operations += 1;
      const verifying = this.#verify(token, jwe, candidates)
        .then((verified) => {
          this.#cache?.set(id, verified.principal, verified, token.length);
          return verified;
        })
        .finally(() => this.#verifying.delete(id));
      this.#verifying.set(id, verifying);
      return verifying;
    };
  }

  async #verify(token: string, jwe: CompactJwe, candidates: readonly DecryptionKey[]): Promise<KnownToken> {
    try {
      const [plaintext, key] = await decryptJwe(jwe, candidates).finally(() => {
        this.#operations -= 1;
      });
      const nested = isNested(jwe.header, this.#issuers);
      const read = nested ? await this.#verifySigned(plaintext) : { claims: readClaims(plaintext), signer: undefined };
      const verified = describeToken(token, jwe.header, key, read, this.#rules.claimsMember);
      // The keys may have changed meanwhile.
      if (!isCurrent(verified, this.keys.byId, this.now())) throw new AuthError('unknown_key');
      return { ...verified, principal: principalOf(verified) };
    } catch (error) {
      throw withKeyId(error, jwe.header.kid);
    }
  }

  async #verifySigned(plaintext: Buffer): Promise<Pick<VerifiedToken, 'claims' | 'signer'>> {
    const jws = parseJws(plaintext);
    const claims = readClaims(jws.payload);
    const issuer = pickIssuer(claims, this.#issuers);
    const update = issuer.update(this.now());
    if (update) await update;
    else if (issuer.isUsable(this.now()) && fittingKeys(jws, issuer.keys).length === 0)
      await issuer.refresh(this.now());
    if (!issuer.isUsable(this.now())) throw new AuthError('issuer_unavailable');
    return { claims, signer: { issuer, keyId: verifyNested(jws, issuer).id } };
  }
}

const verifiers = new WeakMap<JWETokenVerifier, Verifier>();

function verifierOf(verifier: JWETokenVerifier): Verifier {
  const known = verifiers.get(verifier);
  check(known, 'option', 'option "verifier" must be a JWETokenVerifier');
  return known;
}

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
    const catchUp = verifier.keys.catchUp(verifier.now());
    if (catchUp) await verifier.wait(() => catchUp);
    return (await verifier.admit(verifier.identify(token), token, [], verifier.now())).auth;
  }

  /** The JWK Set to publish: the active public key; empty while no key is valid. */
  getJwks(): JwkSet {
    const verifier = verifierOf(this);
    return publish(verifier.keys.keys, verifier.now());
  }

  /** For a readiness probe: there is an unexpired decryption key, and with issuers at least one usable set. */
  isReady(): boolean {
    return verifierOf(this).isReady();
  }
}

// ## Decision
// -----------

/** A request of Node or of an emulation, as far as it is like one. */
interface RequestLike {
  method?: unknown;
  url?: unknown;
  originalUrl?: unknown;
  headers?: unknown;
  rawHeaders?: unknown;
  socket?: { encrypted?: unknown; localAddress?: unknown; destroyed?: unknown; server?: unknown } | null;
  auth?: AuthInfo | undefined;
}

/** What a request is decided on: what the handler sees. Where the host has `rawHeaders`, they only count. */
class NodeHead {
  readonly method: string;
  /** Raw, without the query. */
  readonly path: string;
  /** `:authority` of HTTP/2, else Host. */
  readonly host: string | undefined;
  /** What the client's next request comes on, too. */
  readonly socket: RequestLike['socket'];
  /** More fields than some Node versions show the handler. */
  readonly hasTooManyFields: boolean;
  readonly #headers: Record<string, unknown>;
  readonly #rawHeaders: readonly unknown[];

  constructor(req: RequestLike) {
    const { method, headers, rawHeaders, socket } = req;
    const { originalUrl } = req;
    const original = originalUrl !== undefined && Object.hasOwn(req, 'originalUrl') ? originalUrl : undefined;
    const target = isString(original) ? original : isString(req.url) ? req.url : '';
    const query = target.indexOf('?');
    this.method = isString(method) ? method : '';
    this.path = query < 0 ? target : target.slice(0, query);
    this.#headers = isObject(headers) ? headers : {};
    this.#rawHeaders = Array.isArray(rawHeaders) ? rawHeaders : [];
    // Node 20 cuts headers at this, and not rawHeaders, from which some handlers read.
    const most = isObject(socket?.server) ? socket.server['maxHeadersCount'] : undefined;
    this.hasTooManyFields = this.#rawHeaders.length > 2 * (isNumber(most) && most > 0 ? Math.min(most, 1000) : 1000);
    this.host = this.field(':authority') ?? this.field('host');
    this.socket = socket;
  }

  /** Came over an unencrypted connection from this machine: from a proxy, or from a browser here. */
  get isLocal(): boolean {
    const { encrypted, localAddress } = this.socket ?? {};
    return !encrypted && isString(localAddress) && /^(?:::ffff:)?127\.|^::1$/.test(localAddress);
  }

  /** A field as the handler sees it. */
  field(name: string): string | undefined {
    const value = this.#headers[name];
    // Most fields that are asked for are absent; one that is inherited was not sent.
    if (value === undefined || !Object.hasOwn(this.#headers, name)) return undefined;
    return isString(value) ? value : Array.isArray(value) ? value.join(', ') : String(value);
  }

  /** Whether the client sent the field more than once, whatever became of that. */
  isRepeated(name: string): boolean {
    const value = this.#headers[name];
    if (Array.isArray(value) && value.length > 1) return true;
    const fields = this.#rawHeaders;
    let alike = 0; // in length: mostly there is one, and nothing to compare
    for (let at = 0; at < fields.length; at += 2) {
      const field = fields[at];
      if (isString(field) && field.length === name.length) alike += 1;
    }
    if (alike < 2) return false;
    const same = fields.filter((field, at) => at % 2 === 0 && isString(field) && field.toLowerCase() === name);
    return same.length > 1;
  }
}

/** The platform has normalised the path and joined duplicate fields: joined tokens are no token, joined ids no id. */
class FetchHead {
  readonly method: string;
  readonly path: string;
  readonly host: string | undefined;
  readonly socket: undefined;
  readonly hasTooManyFields = false;
  readonly isLocal = false;
  readonly #headers: Headers;

  constructor({ method, url, headers }: Request) {
    const { pathname, host } = new URL(url);
    this.method = method;
    this.path = pathname;
    this.host = headers.get('host') ?? host;
    this.#headers = headers;
  }

  field(name: string): string | undefined {
    return this.#headers.get(name) ?? undefined;
  }

  isRepeated(): boolean {
    return false;
  }
}
type Head = NodeHead | FetchHead;

interface Answer {
  status: number;
  headers: Record<string, string>;
  body: string;
}
/** A request that reaches the handler. */
interface Admission {
  context: RequestContext;
  headers: Record<string, string>;
  /** Whose the sessions are that the answer names; undefined where they are not bound. */
  binding: SessionBinding | undefined;
}
interface SessionBinding {
  readonly sessions: Pick<Sessions, 'bind'>;
  readonly principal: string;
}
type Decision = Answer | Admission;

const HOST_NAME = /^(\[[\da-f:.]+\]|[\w.-]+)(?::\d{0,5})?$/i;
/** The name in a Host, in lower case, without port and final dot; undefined for what is none. */
const hostName = (host: string): string | undefined => HOST_NAME.exec(host)?.[1]?.toLowerCase().replace(/\.$/, '');
const isHostName = (value: unknown): boolean =>
  isText(value) && hostName(value) === value.toLowerCase().replace(/\.$/, '');
/** What no DNS answer can turn into another machine's name: an IP literal, and localhost (RFC 6761 §6.3). */
const isFixedHost = (name: string): boolean =>
  isIP(name.replace(/^\[|\]$/g, '')) !== 0 || name === 'localhost' || name.endsWith('.localhost');

/** The middleware asks the verifier behind it, so an override would be passed by. */
const isVerifier = (value: unknown): boolean => {
  const { authenticate, verifyToken } = JWETokenVerifier.prototype;
  return value instanceof JWETokenVerifier && value.authenticate === authenticate && value.verifyToken === verifyToken;
};

const REQUEST_OPTIONS: Record<Exclude<keyof AuthOptions, keyof VerifierOptions>, Rule> = {
  verifier: [
    isVerifier,
    'a JWETokenVerifier of this copy of the file that overrides no method; isRevoked is for checks of your own',
  ],
  jwksPath: [isRawPath, 'a raw path that starts with /'],
  requiredClaims: [isListOf(isText), 'an array of claim names'],
  requiredScopes: [isListOf(isScopeToken), 'an array of scope names'],
  anonymous: [isBoolean, 'a boolean'],
  publicPaths: [isListOf(isRawPath), 'an array of raw paths that start with /'],
  tokenHeader: [isFieldName, 'the name of a header field'],
  allowedHosts: [isListOf(isHostName, 1), 'an array of host names such as "mcp.example", without scheme, port or path'],
  resource: [isHttpUrl, 'an absolute http(s) URL without a fragment'],
  jwksUri: [isHttpUrl, 'an absolute http(s) URL without a fragment'],
  authorizationServers: [isListOf(isIssuerUrl, 1), 'an array of URLs: https, or http on a loopback host; no query'],
  openidConfiguration: [isBoolean, 'a boolean'],
  cors: [isCors, 'false or { origin: "*" or an array of origins such as "https://app.example", allowedHeaders? }'],
  bindSessions: [isBoolean, 'a boolean'],
  onEvent: [isFunction, 'a function'],
};

const NO_HEADERS: Record<string, string> = Object.freeze({});
/** Fields that are lists: what a layer in front or the handler names stays in them, and so does what is named here. */
const isList = (name: string): boolean => name === 'vary' || name === 'access-control-expose-headers';
/** A list with the members of another one that it lacks. */
function joinLists(before: unknown, value: string): string {
  const members = [before ?? []].flat().join(', ').split(/ *, */).filter(isText);
  const named = new Set(members.map((member) => member.toLowerCase()));
  return [...members, ...value.split(', ').filter((member) => !named.has(member.toLowerCase()))].join(', ');
}
const EXPOSED = 'WWW-Authenticate, Mcp-Session-Id, Retry-After';
/** What clients of MCP send. */
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

/** RFC 6750 §2.1: the scheme in any case. Undefined for another scheme; what follows Bearer is judged as a token. */
function readBearer(field: string): string | undefined {
  const scheme = /^bearer(?: +|(?![!#$%&'*+.^_`|~0-9a-z-]))/i.exec(field);
  return scheme ? field.slice(scheme[0].length) : undefined;
}

const refusalBody = ({ code, message, missing }: AuthError): string =>
  JSON.stringify({ error: code, error_description: message, ...(missing.length > 0 && { missing }) });

/** A public document, for every origin. Undefined: there is nothing to publish now, and nothing to keep. */
function answerDocument(method: string, read: () => object | undefined): Answer {
  const cors = { 'access-control-allow-origin': '*' };
  const allow = 'GET, HEAD, OPTIONS';
  const json = { ...cors, 'content-type': 'application/json' };
  if (method === 'OPTIONS') {
    const preflight = {
      'access-control-allow-methods': allow,
      'access-control-allow-headers': 'Authorization, *', // the wildcard does not cover Authorization (Fetch standard)
      'access-control-max-age': '600',
    };
    return { status: 204, headers: { ...cors, allow, ...preflight }, body: '' };
  }
  const refusal = { ...json, 'access-control-expose-headers': EXPOSED, 'cache-control': 'no-store' };
  if (method !== 'GET' && method !== 'HEAD') {
    return { status: 405, headers: { ...refusal, allow }, body: refusalBody(new AuthError('method')) };
  }
  const document = read();
  if (document) {
    const headers = { ...json, 'cache-control': 'public, max-age=300' };
    return { status: 200, headers, body: JSON.stringify(document) };
  }
  return { status: 503, headers: { ...refusal, 'retry-after': '1' }, body: refusalBody(new AuthError('no_key')) };
}

/** RFC 9728 §3.1: the well-known path goes between the host and the path of the resource. */
function metadataUrl(resource: string): string {
  const { origin, pathname, search } = new URL(resource);
  return `${origin}/.well-known/oauth-protected-resource${pathname === '/' ? '' : pathname}${search}`;
}

/** The public documents by path: JWKS, Protected Resource Metadata (RFC 9728 §3.1), OpenID configuration. */
function listDocuments(options: AuthOptions, verifier: Verifier): Map<string, () => object | undefined> {
  const { jwksPath = '/.well-known/jwks.json', resource, authorizationServers } = options;
  const { requiredClaims = [], requiredScopes = [] } = options;
  const readKeys = (): JwkSet | undefined => {
    const set = publish(verifier.keys.keys, verifier.now());
    return set.keys.length > 0 ? set : undefined;
  };
  const documents = new Map<string, () => object | undefined>([[jwksPath, readKeys]]);
  if (resource === undefined) return documents;
  const { origin } = new URL(resource);
  const jwks = { jwks_uri: options.jwksUri ?? origin + jwksPath };
  const supported = (scopes: string[]): object => (scopes.length > 0 ? { scopes_supported: [...new Set(scopes)] } : {});
  const metadata = {
    resource,
    ...jwks,
    ...(authorizationServers && { authorization_servers: authorizationServers }),
    bearer_methods_supported: ['header'],
    ...supported(requiredScopes),
  };
  const { pathname } = new URL(metadataUrl(resource));
  for (const path of ['/.well-known/oauth-protected-resource', pathname]) documents.set(path, () => metadata);
  if (options.openidConfiguration) {
    const configuration = { issuer: origin, ...jwks, ...supported([...requiredClaims, ...requiredScopes]) };
    documents.set('/.well-known/openid-configuration', () => configuration);
  }
  return documents;
}

/** A resource without a path is written with the slash or without. */
function namesOf(resource: string): string[] {
  const { origin, href } = new URL(resource);
  return href === `${origin}/` ? [...new Set([resource, origin, href])] : [resource];
}

/** Whose verifier it is, and the options that are not its own. */
function openVerifier(options: AuthOptions): Verifier {
  const { verifier, resource } = options;
  const names = Object.keys(VERIFIER_OPTIONS) as (keyof VerifierOptions)[];
  const own = withoutPrototype(Object.fromEntries(names.map((name) => [name, options[name]]))) as VerifierOptions;
  const extra = names.find((name) => own[name] !== undefined);
  const both = verifier && extra;
  check(!both, 'option', `option "verifier" and option "${extra}" exclude each other: give it to the verifier`);
  // A signed token must be for this server (RFC 8707): for its resource, unless another audience is agreed on.
  if (options.trustedIssuers && resource) own.audience ??= namesOf(resource);
  return verifierOf(verifier ?? new JWETokenVerifier(own));
}

/** Whether an Origin is the page's own host, whatever ends TLS in front. */
function isOriginOf(origin: string, host: string): boolean {
  if (!isHttpUrl(origin)) return false;
  const { protocol, host: expected } = new URL(origin);
  const own = `${protocol}//${host}`;
  return isOrigin(origin) && URL.canParse(own) && new URL(own).host === expected;
}

/** From a request's head to what it gets. The rows of the contract apply in the order of the code. */
class Policy {
  readonly #tokenHeader: string;
  readonly #verifier: Verifier;
  readonly #options: AuthOptions;
  readonly #required: { claims: readonly string[]; scopes: readonly string[] };
  readonly #documents: Map<string, () => object | undefined>;
  readonly #publicPaths: Set<string>;
  readonly #hosts: Set<string>;
  /** The last Host that was this server's, which the next one mostly is. */
  #ownHost: string | undefined;
  readonly #origins: Set<string>;
  readonly #allowedHeaders: readonly string[];
  readonly #audience: readonly string[];
  readonly #server: { resource: string | undefined; resourceMetadataUrl: string | undefined };
  readonly #listeners: readonly Listener[];
  /** The last known header field of each socket, compared exactly: spares a returning client the hash. */
  readonly #last = new WeakMap<object, { field: string; token: string; id: string }>();

  constructor(given: AuthOptions) {
    const options = readOptions(given, { ...VERIFIER_OPTIONS, ...REQUEST_OPTIONS });
    const { resource, cors, onEvent, tokenHeader = 'authorization', allowedHosts = [] } = options;
    for (const name of ['openidConfiguration', 'jwksUri', 'authorizationServers'] as const) {
      check(!options[name] || resource, 'option', `option "${name}" needs option "resource"`);
    }
    this.#verifier = openVerifier(options);
    this.#options = options;
    this.#required = { claims: options.requiredClaims ?? [], scopes: [...new Set(options.requiredScopes)] };
    this.#tokenHeader = tokenHeader.toLowerCase();
    this.#documents = listDocuments(options, this.#verifier);
    this.#publicPaths = new Set(options.publicPaths);
    const { hostname, origin } = resource === undefined ? {} : new URL(resource);
    this.#hosts = new Set(
      [...allowedHosts, hostname ?? []].flat().map((host) => host.toLowerCase().replace(/\.$/, '')),
    );
    this.#origins = new Set([...(origin === undefined ? [] : [origin]), ...(cors ? cors.origin : [])]);
    this.#allowedHeaders = [...PREFLIGHT_HEADERS, this.#tokenHeader, ...((cors && cors.allowedHeaders) || [])];
    this.#audience = resource === undefined ? [] : namesOf(resource);
    this.#server = { resource, resourceMetadataUrl: resource === undefined ? undefined : metadataUrl(resource) };
    this.#listeners = onEvent ? [onEvent] : [];
    if (onEvent) this.#verifier.subscribe(onEvent);
  }

  /** At once unless something has to be read, fetched or decrypted. Neither throws nor rejects. */
  decide(head: Head): Decision | Promise<Decision> {
    const started = performance.now();
    try {
      const now = this.#verifier.now();
      const catchUp = this.#verifier.keys.catchUp(now);
      const decision = catchUp
        ? this.#verifier.wait(() => catchUp).then(() => this.#decide(head, started, this.#verifier.now()))
        : this.#decide(head, started, now);
      if (!(decision instanceof Promise)) return decision;
      return decision.catch((error: unknown) => this.#refuse(head, error, started));
    } catch (error) {
      return this.#refuse(head, error, started);
    }
  }

  /** What went wrong outside the verdict: an answer that could not be given, a request that could not be read. */
  fail(error: unknown): Answer {
    const refusal = new AuthError('failed');
    const { status, reason } = refusal;
    warnOfFault(error);
    tell(this.#listeners, { type: 'failed', reason, status });
    const headers = { 'content-type': 'application/json', 'cache-control': 'no-store' };
    return { status, headers, body: refusalBody(refusal) };
  }

  #decide(head: Head, started: number, now: number): Decision | Promise<Decision> {
    const document = this.#documents.get(head.path);
    if (document) return this.#tellPublic(answerDocument(head.method, document));
    this.#checkOrigin(head);
    if (this.#isPreflight(head)) return this.#tellPublic(this.#preflight(head));
    if (this.#publicPaths.has(head.path)) {
      return this.#tellPublic({
        context: { auth: undefined, ...this.#server },
        headers: this.#headers(head),
        binding: undefined,
      });
    }
    if (head.isRepeated(this.#tokenHeader)) throw new AuthError('duplicate_token');
    return this.#authenticate(head, started, now);
  }

  #tellPublic<D extends Decision>(decision: D): D {
    tell(this.#listeners, { type: 'public', ...('status' in decision && { status: decision.status }) });
    return decision;
  }

  /** Against DNS rebinding: a page whose name now points here is same-origin for its browser; a GET has no Origin. */
  #checkOrigin(head: Head): void {
    if (head.hasTooManyFields) throw new AuthError('too_many_fields');
    const { host = '' } = head;
    const origin = head.field('origin');
    const repeated = head.isRepeated('host') || (origin !== undefined && head.isRepeated('origin'));
    if (repeated) throw new AuthError('duplicate_field');
    const own = host === '' || host === this.#ownHost || this.#isOwnHost(host);
    // Without allowedHosts only where a page can reach what others cannot, and can mint the tokens for it.
    const exposed = !this.#verifier.signed || this.#options.anonymous === true;
    if (!own && (this.#options.allowedHosts || (exposed && head.isLocal))) {
      warnOnce(
        'MCP_AUTH_HOST',
        'A request for a Host that is not this server was refused; set allowedHosts or resource',
      );
      throw new AuthError('host');
    }
    if (origin === undefined || this.#allows(origin)) return;
    if (host === '' || !own || !isOriginOf(origin, host)) throw new AuthError('origin');
  }

  #isOwnHost(host: string): boolean {
    const name = hostName(host);
    const own = name !== undefined && (this.#hosts.has(name) || isFixedHost(name));
    if (own) this.#ownHost = host;
    return own;
  }

  #allows(origin: string): boolean {
    return this.#origins.has(origin) || this.#origins.has('*');
  }

  #authenticate(head: Head, started: number, now: number): Decision | Promise<Decision> {
    const field = head.field(this.#tokenHeader) ?? '';
    const last = head.socket && this.#last.get(head.socket);
    const returning = last?.field === field ? last : undefined; // once: it compares all of the token
    const token = returning ? returning.token : readBearer(field);
    if (token === undefined) {
      if (!this.#options.anonymous) throw new AuthError('no_token');
      return this.#accept(head, undefined, started, false);
    }
    const id = returning ? returning.id : this.#verifier.identify(token);
    const cached = this.#isHeard() && this.#verifier.isKnown(id);
    const admitted = this.#verifier.admit(id, token, this.#audience, now);
    if (admitted instanceof Promise) return admitted.then((known) => this.#accept(head, known, started, cached));
    if (head.socket && !returning) this.#last.set(head.socket, { field, token, id });
    return this.#accept(head, admitted, started, cached);
  }

  #accept(head: Head, known: KnownToken | undefined, started: number, cached: boolean): Admission {
    if (known) this.#checkRequired(known.auth);
    const principal = known?.principal ?? 'anonymous';
    this.#checkSession(head, principal, known?.auth.keyId);
    if (this.#isHeard()) {
      const durationMs = performance.now() - started;
      const { signed = false, keyId, issuer } = known?.auth ?? {};
      const about = known && { signed, cached, keyId, ...(issuer !== undefined && { issuer }) };
      tell(this.#listeners, { type: 'accepted', anonymous: !known, ...about, durationMs } as AuthEvent);
    }
    const { sessions } = this.#verifier;
    const binding = this.#options.bindSessions === false ? undefined : { sessions, principal };
    const { resource, resourceMetadataUrl } = this.#server;
    return { context: { auth: known?.auth, resource, resourceMetadataUrl }, headers: this.#headers(head), binding };
  }

  #isHeard(): boolean {
    return this.#listeners.length > 0 || diagnostics.hasSubscribers;
  }

  #checkRequired({ user, scopes, keyId }: Auth): void {
    const required = this.#required;
    if (required.claims.length + required.scopes.length === 0) return;
    const missingClaims = required.claims.filter((claim) => (user[claim] ?? null) === null);
    const missingScopes = required.scopes.filter((scope) => !scopes.includes(scope));
    if (missingClaims.length + missingScopes.length === 0) return;
    throw new AuthError('insufficient_scope', { missingClaims, missingScopes, keyId });
  }

  /** The last step: use binds an unknown session, so only of requests that nothing else refuses. */
  #checkSession(head: Head, principal: string, keyId: string | undefined): void {
    const id = head.field('mcp-session-id');
    if (id === undefined) return;
    if (head.isRepeated('mcp-session-id')) throw new AuthError('duplicate_field', { keyId });
    if (id === '') return;
    if (!/^[\x21-\x7e]+$/.test(id)) throw new AuthError('session_id', { keyId });
    if (this.#options.bindSessions === false) return;
    if (this.#verifier.sessions.bind(id, principal) !== principal) throw new AuthError('session', { keyId });
  }

  #refuse(head: Head, error: unknown, started: number): Answer {
    const refusal = error instanceof AuthError ? error : new AuthError('failed');
    if (refusal !== error) warnOfFault(error);
    const { status, reason, message, missing, keyId } = refusal;
    const challenge = this.#challenge(refusal);
    const headers = {
      'content-type': 'application/json',
      'cache-control': 'no-store',
      ...this.#headers(head),
      ...(challenge !== undefined && { 'www-authenticate': challenge }),
      ...(status === 503 && { 'retry-after': '1' }),
    };
    tell(this.#listeners, {
      type: reason === 'overloaded' || reason === 'failed' ? reason : 'rejected',
      reason,
      status,
      ...(missing.length > 0 && { missing: Object.freeze([...missing]) }),
      ...(keyId !== undefined && { keyId }),
      pending: this.#verifier.pending,
      durationMs: performance.now() - started,
    });
    // As the MCP SDKs answer for a session they do not know.
    const unknown = { jsonrpc: '2.0', error: { code: -32001, message }, id: null };
    return { status, headers, body: reason === 'session' ? JSON.stringify(unknown) : refusalBody(refusal) };
  }

  /**
   * RFC 6750 §3, RFC 9728 §5.1. All values are constants or checked at construction, so they quote safely. None for
   * a missing claim: an OAuth client would ask its server for a scope of that name, and never get through.
   */
  #challenge({ code, reason, message, missingScopes }: AuthError): string | undefined {
    const token = code === 'invalid_token' || reason === 'duplicate_token';
    if (!token && (code !== 'insufficient_scope' || missingScopes.length === 0)) return undefined;
    const { resourceMetadataUrl } = this.#server;
    const parameters = {
      ...(reason !== 'no_token' && { error: code, error_description: message }),
      ...(this.#required.scopes.length > 0 && { scope: this.#required.scopes.join(' ') }),
      ...(resourceMetadataUrl !== undefined && { resource_metadata: resourceMetadataUrl }),
    };
    const list = Object.entries(parameters).map(([name, value]) => `${name}="${value}"`);
    return `Bearer ${list.join(', ')}`.trimEnd();
  }

  /** On every answer, refusals too: a page must be able to read why. Never Allow-Credentials: the token is explicit. */
  #headers(head: Head): Record<string, string> {
    const { cors } = this.#options;
    // No shared cache knows that another field holds a token (RFC 9111 §3.5).
    const ownField = this.#tokenHeader !== 'authorization';
    if (!cors) return ownField ? { vary: this.#tokenHeader } : NO_HEADERS;
    const open = this.#origins.has('*');
    const origin = open ? '*' : head.field('origin');
    const vary = [open ? [] : 'Origin', ownField ? this.#tokenHeader : []].flat().join(', ');
    return {
      ...(vary && { vary }),
      'access-control-expose-headers': EXPOSED,
      ...(origin !== undefined && this.#allows(origin) && { 'access-control-allow-origin': origin }),
    };
  }

  #isPreflight(head: Head): boolean {
    if (!this.#options.cors || head.method !== 'OPTIONS') return false;
    return head.field('origin') !== undefined && head.field('access-control-request-method') !== undefined;
  }

  #preflight(head: Head): Answer {
    const asked = (head.field('access-control-request-headers') ?? '').split(',').map((name) => name.trim());
    const parameters = asked.filter((name) => /^mcp-param-[!#$%&'*+.^_`|~0-9a-z-]+$/i.test(name));
    const allowed = new Set([...this.#allowedHeaders, ...parameters]);
    const headers = {
      ...this.#headers(head),
      'access-control-allow-methods': 'GET, HEAD, POST, PUT, PATCH, DELETE',
      'access-control-allow-headers': [...allowed].join(', '),
      'access-control-max-age': '600',
    };
    return { status: 204, headers, body: '' };
  }
}

// ## Context
// ----------

const EMPTY_USER: AuthUser = Object.freeze(Object.create(null));
/** Where a request carries its context, for all copies of this file: its shape is fixed for version 1. */
const BINDING: unique symbol = Symbol.for('mcp-auth-middleware/1 request');

/** The context of a request, or of the one that is being handled. */
function contextOf(request: object | undefined): RequestContext {
  if (request === undefined) return context.getStore() ?? NOBODY;
  const bound = request !== null && Object.hasOwn(request, BINDING) ? (request as Bound)[BINDING] : undefined;
  // A wrapper must not look like an empty user.
  check(
    bound,
    'option',
    'this is no request that the middleware has seen; pass the raw one (request.raw, ctx.req, c.req.raw)',
  );
  return bound.context;
}

function describeAuth({ auth, resource, resourceMetadataUrl }: RequestContext): AuthInfo | undefined {
  if (!auth) return undefined;
  const { user, token, scopes, expiresAt } = auth;
  const clientId = [user['client_id'], user['azp'], user.sub].find(isString) ?? '';
  const info: AuthInfo = { token, clientId, scopes: [...scopes], extra: user };
  if (expiresAt !== undefined) info.expiresAt = expiresAt;
  if (resource !== undefined) info.resource = new URL(resource);
  if (resourceMetadataUrl !== undefined) info.resourceMetadataUrl = resourceMetadataUrl;
  return info;
}

/**
 * The claims of the current request's user, deep-frozen; an empty user outside a request and for anonymous ones.
 * `T` types the claims you expect: it is not checked, so list what you rely on in `requiredClaims`.
 * @param req a request of Node or of fetch, for hosts whose hooks leave its context
 * @throws KeyError for an object that is no request the middleware has let through
 */
export function getUser<T = {}>(req?: object): AuthUser & T {
  return (contextOf(req).auth?.user ?? EMPTY_USER) as AuthUser & T;
}

/**
 * The verified token of the request and what is known of it; undefined for anonymous requests and outside of one.
 * @throws KeyError as {@link getUser}
 */
export function getAuth(req?: object): Auth | undefined {
  return contextOf(req).auth;
}

/**
 * The same in the shape of the MCP SDKs; also set as `req.auth`. A new object at every call; undefined for anonymous
 * requests. `T` lets `{ authInfo: getAuthInfo() }` compile under exactOptionalPropertyTypes.
 * @throws KeyError as {@link getUser}
 */
export function getAuthInfo<T extends Partial<AuthInfo> | undefined = AuthInfo | undefined>(req?: object): T {
  return describeAuth(contextOf(req)) as T;
}

/**
 * Runs a function as a user: a WebSocket's messages, a server on stdio, a tool's unit test.
 * @param auth what `authenticate` gave; or `{ user }` with any claims, which are copied and frozen
 * @returns what `run` returns
 * @throws KeyError when `user` is no object; AuthError for claims beyond the limits of a token
 */
export function runAs<R>(auth: { user: AuthUser } & Partial<Auth>, run: () => R): R {
  check(isObject(auth) && isObject(auth.user), 'option', 'runAs needs { user }, an object of claims');
  const { user: given, token = '', signed = false, issuer, keyId = '', scopes, expiresAt = given.exp } = auth;
  const user = verifiedUsers.has(given) ? given : (freezeJson(given, { nodes: 1000 }) as AuthUser);
  const known: Auth = {
    user,
    token,
    signed,
    keyId,
    scopes: Object.freeze([...(scopes ?? readScopes(user))]),
    ...(issuer !== undefined && { issuer }),
    ...(expiresAt !== undefined && { expiresAt }),
  };
  return context.run({ auth: Object.freeze(known) }, run);
}

type Method = (...args: unknown[]) => unknown;
/** Methods whose callbacks hosts call in the connection's context: on a pipelined one that is another request's. */
type WithCallback =
  'write' | 'end' | 'writeContinue' | 'writeEarlyHints' | 'writeInformation' | 'writeProcessing' | 'setTimeout';
type Methods = { [name in WithCallback | 'emit' | 'writeHead']?: Method | undefined };
/** What requests and answers of all hosts have in common here, emulations and those of fetch too. */
interface Bound extends Methods {
  [BINDING]?: Binding;
  listenerCount?(name: unknown): number;
  getHeader?(name: string): unknown;
  setHeader?(name: string, value: unknown): unknown;
}
/** What an answer's head is watched for: sessions that it names, and lists that ours must stay in. */
interface Watch {
  readonly sessions: SessionBinding | undefined;
  readonly lists: Record<string, string>;
}

/** What goes with one request or answer. In private fields: whoever logs `req` logs no token. */
class Binding {
  #context: RequestContext;
  #watched: readonly Watch[] | undefined;
  readonly #methods: Methods | undefined;

  constructor(request: RequestContext, methods?: Methods) {
    this.#context = request;
    this.#methods = methods;
  }

  get context(): RequestContext {
    return this.#context;
  }
  set context(request: RequestContext) {
    this.#context = request;
  }
  /** One for each middleware. */
  get watched(): readonly Watch[] | undefined {
    return this.#watched;
  }
  watch(watch: Watch): void {
    this.#watched = this.#watched ? [...this.#watched, watch] : [watch];
  }
  /** The methods as they were; undefined where none was replaced. */
  get methods(): Methods | undefined {
    return this.#methods;
  }
  /** Calls a method as it was. */
  call(name: keyof Methods, bound: Bound, args: unknown[]): unknown {
    const method = this.#methods?.[name];
    return method && Reflect.apply(method, bound, args);
  }
}

const plainEmit: unknown = EventEmitter.prototype.emit;

// The functions that take the place of methods are the same for all requests: closures for each would cost as much as
// the rest of the way here.

function emitInContext(this: Bound, ...args: unknown[]): unknown {
  const binding = this[BINDING];
  const emit = binding?.methods?.emit;
  if (!emit) return false;
  // Most events have no listener; an error would be thrown.
  if (emit === plainEmit && args[0] !== 'error' && this.listenerCount?.(args[0]) === 0) return false;
  return context.run(binding.context, Reflect.apply, emit, this, args);
}

/** The fields among what `writeHead` takes: an object, an array of pairs, or of names and values in turn. */
function listFields(headers: unknown): [name: string, value: unknown][] {
  if (typeof headers !== 'object' || headers === null) return [];
  if (!Array.isArray(headers)) return Object.entries(headers);
  const list: unknown[] = Array.isArray(headers[0]) ? headers.flat() : headers;
  return list.flatMap((name, at) => (at % 2 === 0 && isString(name) ? [[name, list[at + 1]]] : []));
}

/** Sets what `writeHead` is given, as Node does where fields are set already, and what of our lists is not in them. */
function setFields(bound: Bound, fields: readonly (readonly [string, unknown])[], lists: Record<string, string>): void {
  const named = new Map<string, readonly [string, unknown]>();
  for (const [name, value] of fields) {
    const before = named.get(name.toLowerCase());
    named.set(name.toLowerCase(), before ? [before[0], [before[1], value].flat()] : [name, value]);
  }
  for (const [name, value] of named.values()) bound.setHeader?.(name, value);
  for (const [name, value] of Object.entries(lists)) {
    if (isList(name)) bound.setHeader?.(name, joinLists(bound.getHeader?.(name), value));
  }
}

/** Binds the sessions that an answer names. Node calls writeHead for implicit heads too. */
function writeHeadAndBind(this: Bound, ...args: unknown[]): unknown {
  const binding = this[BINDING];
  if (!binding) return undefined;
  for (const { lists } of binding.watched ?? []) {
    if (lists === NO_HEADERS) continue;
    setFields(this, args.flatMap(listFields), lists);
    args = args.filter((argument) => typeof argument !== 'object');
  }
  const returned = binding.call('writeHead', this, args); // first: a layer in front may name one at this moment
  const set = binding.watched && this.getHeader?.('mcp-session-id');
  if (!binding.watched || (set === undefined && args.length === 1)) return returned; // as mostly
  const named = args.flatMap(listFields).filter(([name]) => name.toLowerCase() === 'mcp-session-id');
  for (const id of [...named.map(([, value]) => value), set ?? []].flat(2)) {
    for (const { sessions } of binding.watched) sessions?.sessions.bind(String(id).trim(), sessions.principal);
  }
  return returned;
}

/** With `listener`, by which Node removes what `setTimeout` added. */
function inContext(request: RequestContext, listener: Method): Method {
  const bound = function (this: unknown, ...args: unknown[]): unknown {
    return context.run(request, Reflect.apply, listener, this, args);
  };
  return Object.assign(bound, { listener });
}

function callBackInContext(name: WithCallback): Method {
  return function (this: Bound, ...args: unknown[]): unknown {
    const binding = this[BINDING];
    if (!binding) return undefined;
    let last = args.length - 1;
    while (last >= 0 && typeof args[last] !== 'function') last -= 1; // wrappers pass on arguments that they did not get
    if (last >= 0) args[last] = inContext(binding.context, args[last] as Method);
    return binding.call(name, this, args);
  };
}

const IN_CONTEXT: Record<WithCallback, Method> = {
  write: callBackInContext('write'),
  end: callBackInContext('end'),
  writeContinue: callBackInContext('writeContinue'),
  writeEarlyHints: callBackInContext('writeEarlyHints'),
  writeInformation: callBackInContext('writeInformation'),
  writeProcessing: callBackInContext('writeProcessing'),
  setTimeout: callBackInContext('setTimeout'),
};

/** Name by name: stores by a computed key would turn the object into a dictionary, slow for everybody. */
function replaceMethods(bound: Bound): Methods {
  const { emit, writeHead, write, end, setTimeout } = bound;
  const { writeContinue, writeEarlyHints, writeInformation, writeProcessing } = bound;
  if (emit) bound.emit = emitInContext;
  if (setTimeout) bound.setTimeout = IN_CONTEXT.setTimeout;
  if (writeHead) bound.writeHead = writeHeadAndBind;
  if (write) bound.write = IN_CONTEXT.write;
  if (end) bound.end = IN_CONTEXT.end;
  if (writeContinue) bound.writeContinue = IN_CONTEXT.writeContinue;
  if (writeEarlyHints) bound.writeEarlyHints = IN_CONTEXT.writeEarlyHints;
  if (writeInformation) bound.writeInformation = IN_CONTEXT.writeInformation;
  if (writeProcessing) bound.writeProcessing = IN_CONTEXT.writeProcessing;
  return { emit, setTimeout, writeHead, write, end, writeContinue, writeEarlyHints, writeInformation, writeProcessing };
}

/**
 * Binds a request or answer to a context. Its listeners would be called in the socket's and its callbacks in the
 * connection's, so both go through here; of several middlewares the innermost counts. Never `enterWith`: it outlives
 * the request.
 */
function bindContext(target: object, request: RequestContext, watch?: Watch): void {
  const bound: Bound = target;
  const nearest = bound[BINDING];
  const own = nearest && Object.hasOwn(bound, BINDING) ? nearest : undefined;
  const inherited = own ? (Object.getPrototypeOf(bound) as Bound | null)?.[BINDING] : nearest; // of what it wraps
  const binding = own?.methods ? own : new Binding(request, inherited?.methods ?? replaceMethods(bound));
  bound[BINDING] = binding;
  binding.context = request;
  if (watch) binding.watch(watch);
}

const UNHANDLED = new Binding(NOBODY);
/** A request that no handler has got yet, or ever gets: an access log that asks for its user hears of nobody. */
function bindToNobody(request: object): void {
  if (!Object.hasOwn(request, BINDING)) Reflect.set(request, BINDING, UNHANDLED);
}

// ## Adapters
// -----------

type NodeRequest = IncomingMessage | Http2ServerRequest;
type NodeResponse = ServerResponse | Http2ServerResponse;
/** Such as Express's, whose last signature, which inference takes, asks for requests of its own. */
type Application = RequestListener & { use: unknown };

interface ResponseLike {
  headersSent?: boolean;
  destroyed?: boolean;
  stream?: { destroyed?: boolean; destroy?(): unknown };
  hasHeader?(name: string): boolean;
  getHeader(name: string): unknown;
  setHeader(name: string, value: string): unknown;
  writeHead(status: number, headers: Record<string, string | number>): unknown;
  end(): unknown;
  end(body: string): unknown;
  destroy?(): unknown;
}

/**
 * The one token in a request's head, for `upgrade` handlers and other hosts that no request listener sees.
 * @param tokenHeader name of the field, default `authorization`
 * @throws AuthError with the reason no_token, duplicate_token or too_many_fields
 */
export function bearerToken(req: NodeRequest, tokenHeader = 'authorization'): string {
  const head = new NodeHead(req);
  const name = tokenHeader.toLowerCase();
  if (head.hasTooManyFields) throw new AuthError('too_many_fields');
  if (head.isRepeated(name)) throw new AuthError('duplicate_token');
  const token = readBearer(head.field(name) ?? '');
  if (token === undefined) throw new AuthError('no_token');
  return token;
}

/** Nothing waits for what `writeHead` returns: emulations return nothing. */
function sendAnswer({ status, headers, body }: Answer, method: string, res: ResponseLike): void {
  const sent: Record<string, string | number> = { ...headers };
  if (status !== 204) sent['content-length'] = Buffer.byteLength(body);
  res.writeHead(status, sent);
  // Some servers throw when a HEAD or a 204 gets a body.
  if (method === 'HEAD' || body === '') res.end();
  else res.end(body);
}

/** Sets `auth`, or takes away what somebody else has set: it is not this request's. */
function setAuth(req: Pick<RequestLike, 'auth'>, request: RequestContext): void {
  if (request.auth) req.auth = describeAuth(request);
  else if (req.auth !== undefined) {
    Reflect.deleteProperty(req, 'auth');
    if (req.auth !== undefined) req.auth = undefined;
  }
}

/** Prepares the request for the handler. */
function enter({ context: request, headers, binding }: Admission, req: RequestLike, res: ResponseLike): void {
  if (headers !== NO_HEADERS) {
    for (const [name, value] of Object.entries(headers)) {
      res.setHeader(name, isList(name) ? joinLists(res.getHeader(name), value) : value);
    }
  }
  setAuth(req, request);
  bindContext(req, request);
  bindContext(res, request, { sessions: binding, lists: headers });
}

/** Whether somebody else has answered, or nobody is there to be answered. */
const isOver = (req: RequestLike, res: ResponseLike): boolean =>
  res.headersSent === true ||
  res.destroyed === true ||
  res.stream?.destroyed === true ||
  req.socket?.destroyed === true;

/**
 * Decides, and answers or lets the handler run in the request's context.
 * @param fail gets what went wrong here and the answer to that; what the handler throws goes its own way
 */
function serve(
  policy: Policy,
  req: RequestLike,
  res: ResponseLike,
  proceed: () => unknown,
  fail: (error: unknown, answer: Answer, req: RequestLike, res: ResponseLike) => void,
): unknown {
  const failed = (error: unknown): unknown => {
    bindToNobody(req);
    return fail(error, policy.fail(error), req, res);
  };
  const carryOut = (decision: Decision): unknown => {
    if (isOver(req, res)) return undefined;
    try {
      if ('status' in decision) {
        bindToNobody(req);
        return void sendAnswer(decision, isString(req.method) ? req.method : '', res);
      }
      enter(decision, req, res);
    } catch (error) {
      return failed(error);
    }
    return context.run(decision.context, proceed);
  };
  if (isOver(req, res)) return bindToNobody(req);
  let decision: Decision | Promise<Decision>;
  try {
    decision = policy.decide(new NodeHead(req));
  } catch (error) {
    return failed(error);
  }
  if (!(decision instanceof Promise)) return carryOut(decision);
  bindToNobody(req);
  // From a tick of its own the handler throws as it would without a promise around it: as an uncaught exception.
  return decision.then((made) => new Promise((resolve) => nextTick(() => resolve(carryOut(made)))));
}

function sendFault(_error: unknown, answer: Answer, req: RequestLike, res: ResponseLike): void {
  try {
    sendAnswer(answer, String(req.method), res);
  } catch {
    const { stream, destroy } = res; // a head is out already
    if (destroy) Reflect.apply(destroy, res, []);
    else stream?.destroy?.();
  }
}

/**
 * Wraps a request listener of `node:http`, `https` or `http2`: it runs only for verified users, in their context.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function withAuth(application: Application, options?: AuthOptions): RequestListener;
export function withAuth<
  Req extends NodeRequest = IncomingMessage,
  Res extends NodeResponse = ServerResponse<IncomingMessage>,
>(handler: (req: Req, res: Res) => unknown, options?: AuthOptions): (req: Req, res: Res) => unknown;
export function withAuth<
  Req extends NodeRequest = IncomingMessage,
  Res extends NodeResponse = ServerResponse<IncomingMessage>,
>(handler: (req: Req, res: Res) => unknown, options: AuthOptions = {}): (req: Req, res: Res) => unknown {
  const usage = 'withAuth needs a request listener: withAuth((req, res) => { … }, options)';
  check(typeof handler === 'function', 'option', usage);
  const policy = new Policy(options);
  return function authenticated(this: unknown, req: Req, res: Res): unknown {
    return serve(policy, req, res, () => Reflect.apply(handler, this, [req, res]), sendFault);
  };
}

/**
 * The same as Connect and Express middleware. Mount it at the root, or the public documents are not found.
 * Unexpected errors go to `next(error)`.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function authMiddleware(
  options: AuthOptions = {},
  // As Connect types it: Fastify's `done` and others take narrower errors.
): (req: NodeRequest, res: NodeResponse, next: (error?: any) => void) => void {
  const policy = new Policy(options);
  return (req, res, next) => {
    // Connect takes an error that is falsy for none, and one that is 'route' for a way around.
    const fail = (error: unknown): void =>
      next(error instanceof Error ? error : new Error('mcp-auth-middleware failed', { cause: error }));
    serve(policy, req, res, () => next(), fail);
  };
}

function withHeaders(response: Response, headers: Record<string, string>): Response {
  const set = (to: Headers): void => {
    for (const [name, value] of Object.entries(headers))
      to.set(name, isList(name) ? joinLists(to.get(name), value) : value);
  };
  // One without a body may be given for many requests; one of fetch is immutable; of 101 there is no other.
  if (response.type === 'error') return response;
  if (response.body !== null || response.status === 101) {
    try {
      set(response.headers);
      return response;
    } catch {
      // immutable
    }
  }
  const own = new Response(response.body, response);
  set(own.headers);
  return own;
}

/** Decides, and prepares the request for the handler where it is admitted. */
async function decideFetch(policy: Policy, request: Request): Promise<Decision> {
  bindToNobody(request);
  try {
    const decision = await policy.decide(new FetchHead(request));
    if ('status' in decision) return decision;
    setAuth(request as Pick<RequestLike, 'auth'>, decision.context);
    bindContext(request, decision.context);
    return decision;
  } catch (error) {
    return policy.fail(error);
  }
}

/**
 * The same for servers that answer a `Request` with a `Response`. Sets `request.auth`. A body that is pulled after the
 * handler has returned is outside its context: read the user before.
 * @throws KeyError for bad options, and when there is no usable key
 */
export function withAuthFetch<Req extends Request = Request, Rest extends unknown[] = []>(
  handler: (request: Req, ...rest: Rest) => Response | Promise<Response>,
  options: AuthOptions = {},
): (request: Req, ...rest: Rest) => Promise<Response> {
  const usage = 'withAuthFetch needs a handler: withAuthFetch((request) => new Response(…), options)';
  check(typeof handler === 'function', 'option', usage);
  const policy = new Policy(options);
  return async (request, ...rest) => {
    const decision = await decideFetch(policy, request);
    if ('status' in decision) {
      const { status, headers, body } = decision;
      return new Response(request.method === 'HEAD' || body === '' ? null : body, { status, headers });
    }
    if (request.signal?.aborted) return new Response(null, { status: 503 });
    const { context: admitted, headers, binding } = decision;
    const response = await context.run(admitted, () => handler(request, ...rest));
    if (response === undefined) return response; // on Bun, of a request that became a WebSocket
    const opened = response.headers.get('mcp-session-id');
    if (opened !== null) binding?.sessions.bind(opened, binding.principal);
    return headers === NO_HEADERS ? response : withHeaders(response, headers);
  };
}
