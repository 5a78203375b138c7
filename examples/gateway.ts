// A producer: what a gateway or a chat client does so that an MCP server knows its user.
//
//   node gateway.ts http://127.0.0.1:3000/mcp
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { encryptToken, type JwkSet } from 'mcp-auth-middleware';

const url = new URL(process.argv[2] ?? 'http://127.0.0.1:3000/mcp');

// 1. The server's public key, over https except on loopback: whoever can swap this key reads the claims.
//    A long-running gateway keeps the set for the max-age it came with (300 s), not for ever: keys rotate.
if (url.protocol !== 'https:' && !['localhost', '127.0.0.1', '[::1]'].includes(url.hostname))
  throw new Error(`${url.origin} must be https: whoever can swap its key reads the claims`);
const response = await fetch(new URL('/.well-known/jwks.json', url), { redirect: 'error' });
if (!response.ok) throw new Error(`no key set at ${response.url}: HTTP ${response.status}`);
const jwks = (await response.json()) as JwkSet; // encryptToken checks what it uses of it

// 2. The claims about the user of this request, readable by that server alone.
const claims = { sub: 'user-1', name: 'Ada', email: 'ada@example.com' };
const token = await encryptToken(claims, jwks, { expiresIn: 300 });

// 3. An ordinary MCP call, with the token in the one header.
const client = new Client({ name: 'gateway', version: '1.0.0' });
const headers = { Authorization: `Bearer ${token}` };
await client.connect(new StreamableHTTPClientTransport(url, { requestInit: { headers } }));
const { content } = await client.callTool({ name: 'whoami' });
for (const part of content) if (part.type === 'text') console.log(part.text);
await client.close();
