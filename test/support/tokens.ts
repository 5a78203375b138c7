// Makes tokens by hand with node:crypto and none of the library's code: sound ones, and ones with exactly one defect.
// And says what a refusal must look like, whatever was wrong.
import assert from 'node:assert/strict';
import {
  constants,
  createCipheriv,
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  publicEncrypt,
  randomBytes,
  sign,
} from 'node:crypto';
import { AuthError, KeyError, type KeyErrorCode, type RefusalReason, type RsaPublicJwk } from 'mcp-auth-middleware';

/** A string or bytes are taken as they are, anything else as its JSON. */
export type Content = string | Uint8Array | object;

const isBytes = (content: Content): content is string | Uint8Array =>
  typeof content === 'string' || content instanceof Uint8Array;
const bytes = (content: Content): Buffer => Buffer.from(isBytes(content) ? content : JSON.stringify(content));
export const base64url = (content: Content): string => bytes(content).toString('base64url');

/** What a caller without TypeScript may pass. */
export const untyped = <T = never>(value: unknown): T => value as T;

const IN_PEM = {
  publicKeyEncoding: { type: 'spki', format: 'pem' },
  privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
} as const;

/**
 * A pair that went through PEM: on Node 20 the JWK export of a key deadlocks when the collector meanwhile frees the job
 * that generated it, and the two share a lock (once in some 3,000 exports).
 */
export function newPair(
  type: 'rsa' | 'ec' | 'ed25519',
  options: { modulusLength?: number; publicExponent?: number; namedCurve?: string } = {},
): { publicKey: KeyObject; privateKey: KeyObject } {
  const { modulusLength = 2048, publicExponent = 65537, namedCurve = 'P-256' } = options;
  const pem =
    type === 'rsa'
      ? generateKeyPairSync(type, { modulusLength, publicExponent, ...IN_PEM })
      : type === 'ec'
        ? generateKeyPairSync(type, { namedCurve, ...IN_PEM })
        : generateKeyPairSync(type, IN_PEM);
  return { publicKey: createPublicKey(pem.publicKey), privateKey: createPrivateKey(pem.privateKey) };
}

type Hash = 'sha1' | 'sha256' | 'sha384';
const hashOf = (jwk: { alg?: string | undefined }): Hash => (jwk.alg === 'RSA-OAEP' ? 'sha1' : 'sha256');
const publicKeyOf = ({ n, e }: RsaPublicJwk): KeyObject =>
  createPublicKey({ key: { kty: 'RSA', n, e }, format: 'jwk' });

export interface OaepDefect {
  hash?: Hash;
  mgfHash?: Hash;
  label?: string;
  /** The octet before the seed, which must be 0 (Manger's attack asks about exactly this one). */
  first?: number;
  /** Overwrites the data block (lHash, zeros, 1, message) before it is masked. */
  spoil?: (block: Buffer) => void;
}

function mgf1(seed: Buffer, octets: number, hash: Hash): Buffer {
  const blocks: Buffer[] = [];
  for (let counter = 0, length = 0; length < octets; counter++) {
    const suffix = Buffer.alloc(4);
    suffix.writeUInt32BE(counter);
    const block = createHash(hash).update(seed).update(suffix).digest();
    length += block.length;
    blocks.push(block);
  }
  return Buffer.concat(blocks).subarray(0, octets);
}

const xor = (a: Buffer, b: Buffer): Buffer => Buffer.from(a.map((octet, index) => octet ^ (b[index] ?? 0)));

/** RSAES-OAEP (RFC 8017 §7.1.1) step by step, so that each step can be wrong. */
export function oaep(jwk: RsaPublicJwk, message: Buffer, defect: OaepDefect = {}): Buffer {
  const { hash = hashOf(jwk), mgfHash = hash, label = '', first = 0, spoil } = defect;
  const octets = Buffer.from(jwk.n, 'base64url').length;
  const labelHash = createHash(hash).update(label).digest();
  const seed = randomBytes(labelHash.length);
  const zeros = Buffer.alloc(octets - message.length - 2 * labelHash.length - 2);
  const block = Buffer.concat([labelHash, zeros, Buffer.of(1), message]);
  spoil?.(block);
  const maskedBlock = xor(block, mgf1(seed, block.length, mgfHash));
  const maskedSeed = xor(seed, mgf1(maskedBlock, seed.length, mgfHash));
  return publicEncrypt(
    { key: publicKeyOf(jwk), padding: constants.RSA_NO_PADDING },
    Buffer.concat([Buffer.of(first), maskedSeed, maskedBlock]),
  );
}

/** RSAES-PKCS1-v1_5, which no token may use. */
export const pkcs1 = (jwk: RsaPublicJwk, message: Buffer): Buffer =>
  publicEncrypt({ key: publicKeyOf(jwk), padding: constants.RSA_PKCS1_PADDING }, message);

export interface Recipe {
  /** Members over `alg`, `enc` and `kid` (undefined removes one), or the whole header as text or bytes. */
  header?: Content;
  /** `{ sub: 'ada' }` otherwise. */
  plaintext?: Content;
  cek?: Buffer;
  /** How the CEK gets into the encrypted key: OAEP otherwise. */
  wrap?: (jwk: RsaPublicJwk, cek: Buffer) => Buffer;
  iv?: Buffer;
  tagLength?: number;
  /** What is authenticated instead of the header's segment. */
  aad?: string;
}

/**
 * A compact JWE with A256GCM.
 * A CEK of another size is used as a careless recipient would: AES of that size, else cut or filled up.
 */
export function seal(jwk: RsaPublicJwk, recipe: Recipe = {}): string {
  const {
    header = {},
    plaintext = { sub: 'ada' },
    cek = randomBytes(32),
    wrap = oaep,
    iv = randomBytes(12),
    tagLength = 16,
  } = recipe;
  const protectedHeader = base64url(
    isBytes(header) ? header : { alg: jwk.alg ?? 'RSA-OAEP-256', enc: 'A256GCM', kid: jwk.kid, ...header },
  );
  const name = cek.length === 16 ? 'aes-128-gcm' : cek.length === 24 ? 'aes-192-gcm' : 'aes-256-gcm';
  const key = name === 'aes-256-gcm' ? Buffer.concat([cek, Buffer.alloc(32)]).subarray(0, 32) : cek;
  const cipher = createCipheriv(name, key, iv, { authTagLength: tagLength });
  cipher.setAAD(Buffer.from(recipe.aad ?? protectedHeader, 'ascii'));
  const ciphertext = Buffer.concat([cipher.update(bytes(plaintext)), cipher.final()]);
  return [protectedHeader, ...[wrap(jwk, cek), iv, ciphertext, cipher.getAuthTag()].map(base64url)].join('.');
}

export const SEGMENTS = ['protected header', 'encrypted key', 'iv', 'ciphertext', 'tag'] as const;

/** The token with one of its segments changed. */
export function edit(token: string, segment: (typeof SEGMENTS)[number], change: (text: string) => string): string {
  const index = SEGMENTS.indexOf(segment);
  return token
    .split('.')
    .map((text, other) => (other === index ? change(text) : text))
    .join('.');
}

/** The same for the octets of a segment. */
export const editBytes = (
  token: string,
  segment: (typeof SEGMENTS)[number],
  change: (octets: Buffer) => Buffer,
): string => edit(token, segment, (text) => base64url(change(Buffer.from(text, 'base64url'))));

/** Changes the lowest bit of the last octet. */
export function flip(octets: Buffer): Buffer {
  const changed = Buffer.from(octets);
  changed.writeUInt8(changed.readUInt8(changed.length - 1) ^ 1, changed.length - 1);
  return changed;
}

/** How each algorithm signs (RFC 7518 §3, RFC 8037 §3.1). */
export const SIGNERS: Record<string, (input: Buffer, key: KeyObject) => Buffer> = {
  RS256: (input, key) => sign('sha256', input, { key, padding: constants.RSA_PKCS1_PADDING }),
  PS256: (input, key) => sign('sha256', input, { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }),
  ES256: (input, key) => sign('sha256', input, { key, dsaEncoding: 'ieee-p1363' }),
  EdDSA: (input, key) => sign(null, input, key),
};

/** A compact JWS of any header, over any payload, with whatever makes its signature. */
export function signJws(header: Content, payload: Content, signer: (input: Buffer) => Buffer): string {
  const input = `${base64url(header)}.${base64url(payload)}`;
  return `${input}.${base64url(signer(Buffer.from(input)))}`;
}

/**
 * What the client is told.
 * Everything that is not about times, issuer or audience is one text: nothing tells the failures apart.
 */
const UNIFORM = 'The access token is invalid';
const MESSAGES: Partial<Record<RefusalReason, string>> = {
  malformed: UNIFORM,
  unknown_key: UNIFORM,
  undecryptable: UNIFORM,
  signature: UNIFORM,
  claims: UNIFORM,
  unsafe_integer: UNIFORM,
  cnf: UNIFORM,
  typ: UNIFORM,
  expired: 'The access token has expired',
  not_yet_valid: 'The access token is not valid yet',
  issuer: 'The access token is from another issuer',
  audience: 'The access token is for another audience',
  revoked: 'The access token has been revoked',
};

/** Holds that the token was refused for this reason, with the code, status and text that belong to it, nothing else. */
export async function refused(result: Promise<unknown>, reason: RefusalReason, about = ''): Promise<void> {
  const error: unknown = await result.then(
    () => assert.fail(`accepted ${about}`),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof AuthError, `${about}: ${String(error)}`);
  const { name, code, status, message, cause } = error;
  assert.deepEqual(
    { name, code, status, message, cause, reason: error.reason },
    { name: 'AuthError', code: 'invalid_token', status: 401, message: MESSAGES[reason], cause: undefined, reason },
    about,
  );
}

/** Holds that a key or an option was refused, and that the message says what is wrong and shows nothing private. */
export function keyRefused(
  act: () => unknown,
  code: KeyErrorCode,
  message: RegExp,
  secrets: readonly string[] = [],
): void {
  assert.throws(act, (error) => {
    assert.ok(error instanceof KeyError, String(error));
    assert.deepEqual([error.name, error.code, error.cause], ['KeyError', code, undefined]);
    assert.match(error.message, message);
    for (const secret of secrets) assert.ok(!error.message.includes(secret), 'the message shows a private member');
    return true;
  });
}
