// fastmcp has a server of its own, which no middleware can stand in front of: its `authenticate` asks the verifier, and each
// tool runs as the user. Stateless, because its sessions are not bound to their users.
import { FastMCP } from 'fastmcp';
import { type Auth, AuthError, bearerToken, getUser, JWETokenVerifier, runAs } from 'mcp-auth-middleware';

const verifier = new JWETokenVerifier();
const server = new FastMCP<Auth>({
  name: 'hosts',
  version: '1.0.0',
  authenticate: async (req) => {
    try {
      return await verifier.authenticate(bearerToken(req));
    } catch (error) {
      const status = error instanceof AuthError ? error.status : 500;
      throw new Response(null, { status, headers: { 'WWW-Authenticate': 'Bearer' } });
    }
  },
});
server.addTool({
  name: 'whoami',
  execute: async (_args, { session }) => runAs(session, () => `${getUser().sub} through ${getAuthInfo()?.clientId}`),
});
server.getApp().get('/.well-known/jwks.json', (c) => c.json(verifier.getJwks()));
await server.start({ transportType: 'httpStream', httpStream: { port: 3000, host: '127.0.0.1', stateless: true } });
