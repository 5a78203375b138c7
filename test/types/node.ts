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
  type AuthenticatedRequest,
  type AuthEvent,
  type AuthInfo,
  type AuthOptions,
  type AuthUser,
  authMiddleware,
  bearerToken,
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  type EncryptTokenOptions,
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
  runAs,
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
same<Option<Parameters<typeof encryptToken>[2]>, EncryptTokenOptions>();
same<
  EncryptTokenOptions,
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

same<typeof getAuth, (req?: object) => Auth | undefined>();
same<AuthenticatedRequest['auth'], AuthInfo | undefined>();
same<ReturnType<typeof runAs<Promise<string>>>, Promise<string>>();
same<Parameters<typeof runAs>[0], { user: AuthUser } & Partial<Auth>>();

// Verification and errors
same<Option<ConstructorParameters<typeof JWETokenVerifier>[0]>, VerifierOptions>();
same<ReturnType<JWETokenVerifier['verifyToken']>, Promise<AuthUser>>();
same<ReturnType<JWETokenVerifier['authenticate']>, Promise<Auth>>();
same<ReturnType<JWETokenVerifier['getJwks']>, JwkSet>();
same<ReturnType<JWETokenVerifier['isReady']>, boolean>();
same<AuthError['reason'], RefusalReason>();
same<AuthError['status'], number>();
same<
  AuthError['code'],
  'invalid_request' | 'invalid_token' | 'insufficient_scope' | 'temporarily_unavailable' | 'server_error'
>();
same<KeyError['code'], KeyErrorCode>();
same<AuthEvent['reason'], RefusalReason | undefined>();

export const issuers: TrustedIssuer[] = [
  { issuer: 'https://idp.example', jwks: new URL('https://idp.example/jwks.json'), typ: 'at+jwt' },
  { issuer: 'https://other.example', jwks: async () => ({ keys: [] }), algorithms: ['ES256'] },
];

export const options: AuthOptions = {
  trustedIssuers: issuers,
  resource: 'https://mcp.example/mcp',
  requiredScopes: ['notes:read'],
  cors: { origin: ['https://app.example'], allowedHeaders: ['x-trace'] },
  keyFile: process.env['MCP_KEY_FILE_PATH'], // undefined is as good as absent
  isRevoked: ({ expiresAt }) => expiresAt === 0,
  onEvent: async ({ type, reason }) => console.error(type, reason),
};

// Every server that Node has takes what withAuth gives, and gives it what it takes, without a cast.
const listener: RequestListener = (req, res) => void res.end(req.url);
createServer(withAuth(listener, options));
createServer(withAuth((req: IncomingMessage, res: ServerResponse) => void res.end(req.url)));
createServer(withAuth((_req, res) => void res.end(getUser<{ name: string }>().name)));
createServer(withAuth((req: AuthenticatedRequest, res) => void res.end(req.auth?.clientId)));
createServer(withAuth(async (_req, res) => void res.end()));
createHttpsServer({}, withAuth(listener));
createHttpsServer(
  {},
  withAuth((req, res) => void res.end(req.url)),
);
createHttp2Server(withAuth((req: Http2ServerRequest, res: Http2ServerResponse) => void res.end(req.authority)));
createSecureServer(
  {},
  withAuth((req: Http2ServerRequest, res: Http2ServerResponse) => void res.end(req.authority)),
);

const sockets = createServer();
sockets.on('upgrade', async (req) => {
  const auth = await new JWETokenVerifier().authenticate(bearerToken(req));
  const name: unknown = runAs(auth, () => getUser()['name']);
  runAs({ user: { sub: 'a test' } }, () => console.log(name));
});

const middleware = authMiddleware({ anonymous: true });
export function connect(req: IncomingMessage, res: ServerResponse, next: (error?: Error) => void): void {
  middleware(req, res, next);
}

export const fetchHandler: (request: Request, environment: { name: string }) => Promise<Response> = withAuthFetch(
  (request, environment: { name: string }) => new Response(environment.name + getAuth(request)?.keyId),
);

/** As a host of its own kind of Request types its handlers, such as Next.js. */
declare class HostRequest extends Request {
  readonly cookies: ReadonlyMap<string, string>;
}
export const hostHandler: (request: HostRequest) => Promise<Response> = withAuthFetch(
  async (request: HostRequest) => new Response(request.cookies.get('theme')),
);

/** The option of the MCP SDKs' fetch transports, which takes no undefined under exactOptionalPropertyTypes. */
export const forTransport = (): { authInfo?: AuthInfo } => ({ authInfo: getAuthInfo() });
const whoever = getAuthInfo();
same<typeof whoever, AuthInfo | undefined>();

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
