// What a strict project writes against the library on Node's own servers, with the exact type of every export.
// The types test compiles it in every cell of its matrix, beside the vendored file and against the package.
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import {
  createSecureServer,
  createServer as createHttp2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
} from 'node:http2';
import { createServer as createHttpsServer } from 'node:https';
import {
  AuthError,
  type Auth,
  type AuthEvent,
  type AuthInfo,
  type AuthOptions,
  type AuthUser,
  authMiddleware,
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  generateKeyPair,
  getAuth,
  getAuthInfo,
  getUser,
  type JweHeader,
  JWETokenVerifier,
  type Jwk,
  type JwkSet,
  jwkThumbprint,
  KeyError,
  type KeyErrorCode,
  type PrivateSigningJwk,
  publicJwks,
  type RefusalReason,
  type RsaAlg,
  type RsaPrivateJwk,
  type RsaPublicJwk,
  type SignatureAlg,
  type TrustedIssuer,
  type VerifierOptions,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Compiles only where both types are the same in every respect. */
function same<A, B>(..._proof: Same<A, B> extends true ? [] : ['the types differ']): void {}

type Option<Parameter> = Exclude<Parameter, undefined>;

// @ts-expect-error: the two differ, so that an assertion that cannot fail is noticed
same<Auth, AuthUser>();

// Keys
same<RsaAlg, 'RSA-OAEP-256' | 'RSA-OAEP'>();
same<SignatureAlg, 'RS256' | 'PS256' | 'ES256' | 'EdDSA' | 'Ed25519'>();
same<JwkSet, { keys: Jwk[] }>();
same<Pick<Jwk, 'kty' | 'kid' | 'nbf' | 'key_ops'>, { kty: string; kid?: string; nbf?: number; key_ops?: string[] }>();
same<Pick<RsaPublicJwk, 'kty' | 'n' | 'e'>, { kty: 'RSA'; n: string; e: string }>();
same<Pick<RsaPrivateJwk, 'kty' | 'd' | 'qi'>, { kty: 'RSA'; d: string; qi: string }>();
same<PrivateSigningJwk['d'], string>();
same<ReturnType<typeof generateKeyPair>, Promise<{ privateJwk: RsaPrivateJwk; publicJwk: RsaPublicJwk }>>();
same<Option<Parameters<typeof generateKeyPair>[0]>, { modulusLength?: 2048 | 3072 | 4096; alg?: RsaAlg }>();
same<typeof publicJwks, (set: JwkSet | Jwk) => JwkSet>();
same<typeof jwkThumbprint, (jwk: Jwk) => string>();

// Tokens
same<
  typeof compactEncrypt,
  (plaintext: Uint8Array, jwk: RsaPublicJwk, header?: { cty?: string; typ?: string }) => string
>();
same<
  typeof compactDecrypt,
  (jwe: string, keys: RsaPrivateJwk | JwkSet) => Promise<{ plaintext: Uint8Array; protectedHeader: JweHeader }>
>();
same<Pick<JweHeader, 'alg' | 'enc' | 'kid'>, { alg: RsaAlg; enc: 'A256GCM'; kid?: string }>();
same<Parameters<typeof encryptToken>[1], RsaPublicJwk | JwkSet>();
same<
  Option<Parameters<typeof encryptToken>[2]>,
  {
    expiresIn?: number | null;
    sign?: { key: PrivateSigningJwk; issuer: string; audience: string | string[] };
  }
>();
same<ReturnType<typeof encryptToken>, Promise<string>>();

// The request
same<AuthUser['sub'], string | undefined>();
same<AuthUser['anything else'], unknown>();
same<
  Auth,
  {
    readonly user: AuthUser;
    readonly token: string;
    readonly signed: boolean;
    readonly issuer?: string;
    readonly keyId: string;
    readonly scopes: readonly string[];
    readonly expiresAt?: number;
  }
>();
same<
  AuthInfo,
  {
    token: string;
    clientId: string;
    scopes: string[];
    expiresAt?: number;
    resource?: URL;
    resourceMetadataUrl?: string;
    extra: Record<string, unknown>;
  }
>();
same<ReturnType<typeof getUser>, AuthUser>();
same<ReturnType<typeof getUser<{ name: string }>>, AuthUser & { name: string }>();
same<ReturnType<typeof getAuth>, Auth | undefined>();
same<ReturnType<typeof getAuthInfo>, AuthInfo | undefined>();

// Verification and errors
same<Option<ConstructorParameters<typeof JWETokenVerifier>[0]>, VerifierOptions>();
same<ReturnType<JWETokenVerifier['verifyToken']>, Promise<AuthUser>>();
same<ReturnType<JWETokenVerifier['authenticate']>, Promise<Auth>>();
same<ReturnType<JWETokenVerifier['getJwks']>, JwkSet>();
same<AuthError['reason'], RefusalReason>();
same<AuthError['status'], number>();
same<KeyError['code'], KeyErrorCode>();
same<AuthEvent['keyId'], string | undefined>();

export const issuer: TrustedIssuer = {
  issuer: 'https://idp.example',
  jwks: new URL('https://idp.example/jwks.json'),
  algorithms: ['ES256'],
};

export const options: AuthOptions = {
  trustedIssuers: [issuer],
  resource: 'https://mcp.example/mcp',
  requiredScopes: ['notes:read'],
  cors: { origin: ['https://app.example'] },
  keyFile: process.env['MCP_KEY_FILE_PATH'], // undefined is as good as absent
  onEvent: ({ type, reason }) => console.error(type, reason),
};

export const listener: RequestListener = withAuth((_req, res) => void res.end(getUser()['name']), options);

createServer(listener);
createServer(withAuth((req: IncomingMessage, res: ServerResponse) => void res.end(req.url)));
createHttpsServer({}, listener);
createHttpsServer(
  {},
  withAuth((_req, res) => void res.end()),
);

export const middleware: (req: IncomingMessage, res: ServerResponse, next: (error?: unknown) => void) => void =
  authMiddleware({ anonymous: true });

export const fetchHandler: (request: Request, environment: { name: string }) => Promise<Response> = withAuthFetch(
  (_request, environment) => new Response(environment.name),
);

export async function reject(verifier: JWETokenVerifier, token: string): Promise<string | undefined> {
  try {
    const { sub } = await verifier.verifyToken(token);
    return sub;
  } catch (error) {
    return error instanceof AuthError ? error.reason : undefined;
  }
}

export function unchangeable(user: AuthUser, auth: Auth): void {
  // @ts-expect-error: claims are frozen
  user.sub = 'somebody else';
  // @ts-expect-error: so is what is known beside them
  auth.signed = true;
  // @ts-expect-error: an option that does not exist
  withAuth(listener, { requireClaims: ['name'] });
}

createHttp2Server;
createSecureServer;
same<Http2ServerRequest, Http2ServerRequest>();
same<Http2ServerResponse, Http2ServerResponse>();
