// fastmcp has a server of its own, and no middleware can stand in front of it: `authenticate` asks the verifier, and
// each tool runs as the user. Stateless: with sessions, fastmcp lets every user into every one.
import { FastMCP } from 'fastmcp';
import { type Auth, AuthError, bearerToken, getAuthInfo, getUser, JWETokenVerifier, runAs } from 'mcp-auth-middleware';

const verifier = new JWETokenVerifier();

const server = new FastMCP<Auth>({
  name: 'hosts',
  version: '1.0.0',
  authenticate: async (req) => {
    try {
      return await verifier.authenticate(bearerToken(req));
    } catch (error) {
      if (!(error instanceof AuthError)) throw error;
      const { code, message, reason, status } = error;
      const headers = { 'WWW-Authenticate': reason === 'no_token' ? 'Bearer' : `Bearer error="${code}"` };
      throw Response.json({ error: code, error_description: message }, { status, headers });
    }
  },
});

server.addTool({
  name: 'whoami',
  execute: async (_args, { session }) => {
    if (!session) throw new Error('authenticate has given no user');
    return runAs(session, () => `${getUser().sub} through ${getAuthInfo()?.clientId}`);
  },
});

server
  .getApp()
  .get('/.well-known/jwks.json', (c) => c.json(verifier.getJwks(), 200, { 'Cache-Control': 'public, max-age=300' }));
await server.start({ transportType: 'httpStream', httpStream: { port: 3000, host: '127.0.0.1', stateless: true } });
