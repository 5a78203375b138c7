// Next.js and other routes made of files, with mcp-handler. This is app/api/mcp/route.ts; the public key needs a route
// too, app/.well-known/jwks.json/route.ts: export { GET, OPTIONS } from '../../api/mcp/route';
import { createMcpHandler } from 'mcp-handler';
import { withAuthFetch } from 'mcp-auth-middleware';
import { registerTools } from './tools.ts';

const handler = withAuthFetch(createMcpHandler(registerTools), { cors: { origin: ['https://app.example'] } });

export { handler as DELETE, handler as GET, handler as OPTIONS, handler as POST };
