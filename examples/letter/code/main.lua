-- Fills in a letter. The payload is text here, a line for each value; what the letter asks for has to be in it.
local values = {}
for line in io.lines(os.getenv("JOB_PAYLOAD_FILE")) do
  local name, value = line:match("^(%w+)%s*=%s*(.-)%s*$")
  if name then values[name] = value end
end

local file <close> = assert(io.open(os.getenv("JOB_CODE_DIR") .. "/letter.txt"))
local missing = {}
local letter, filled = file:read("a"):gsub("{(%w+)}", function(name)
  if not values[name] then missing[#missing + 1] = name end
  return values[name]
end)
if #missing > 0 then
  io.stderr:write("the payload has no value for: ", table.concat(missing, ", "), "\n")
  os.exit(1)
end

io.write(letter)
local escaped = letter:gsub('[\\"]', "\\%0"):gsub("\n", "\\n")
local output <close> = assert(io.open(os.getenv("JOB_OUTPUT_FILE"), "w"))
output:write(('{"filled": %d, "letter": "%s"}'):format(filled, escaped))
