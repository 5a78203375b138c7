// The keys and tokens of the bench, made once.
import { createPrivateKey, generateKeyPairSync } from 'node:crypto';
import { SignJWT } from 'jose';
import { encryptToken, generateKeyPair, JWETokenVerifier } from 'mcp-auth-middleware';
import type { ServerInput } from './bench-server.js';
import { note } from './bench-rows.js';

note('keys and tokens …');
export const { privateJwk, publicJwk } = await generateKeyPair();
export const claims = { sub: 'alice', email: 'alice@example.com', name: 'Alice', groups: ['staff', 'research'] };
export const mint = (jti: number): Promise<string> => encryptToken({ ...claims, jti: String(jti) }, publicJwk);
export const token = await mint(0);
export const verifierOf = (): JWETokenVerifier => new JWETokenVerifier({ keys: privateJwk, maxPending: 10_000 });
export const privatePem = createPrivateKey({ key: { ...privateJwk }, format: 'jwk' }).export({
  format: 'pem',
  type: 'pkcs8',
});

/** What others verify: a token that is signed with RSA-2048, and not encrypted. */
export const signing = generateKeyPairSync('rsa', { modulusLength: 2048 });
export const sign = (alg: string): Promise<string> =>
  new SignJWT(claims)
    .setProtectedHeader({ alg })
    .setIssuedAt()
    .setIssuer('issuer')
    .setAudience('audience')
    .setExpirationTime('1h')
    .sign(signing.privateKey);

export const input: ServerInput = {
  keys: JSON.stringify(privateJwk),
  token,
  signer: { ...signing.publicKey.export({ format: 'jwk' }), kty: 'RSA' },
};
