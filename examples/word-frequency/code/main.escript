#!/usr/bin/env escript
%% Counts the words of a text: a process for each line, and one that adds up what they found.

main([]) ->
    {ok, Payload} = file:read_file(os:getenv("JOB_PAYLOAD_FILE")),
    #{<<"top">> := Top} = json:decode(Payload),
    {ok, Text} = file:read_file(filename:join(os:getenv("JOB_CODE_DIR"), "text.txt")),
    Collector = self(),
    Lines = binary:split(Text, <<"\n">>, [global, trim]),
    Counters = [spawn_link(fun() -> Collector ! {self(), count(Line)} end) || Line <- Lines],
    Total = lists:foldl(fun(Pid, Sum) -> add(Sum, receive {Pid, Found} -> Found end) end, #{}, Counters),
    Words = lists:sort(fun({A, N}, {B, M}) -> {-N, A} =< {-M, B} end, maps:to_list(Total)),
    Best = lists:sublist(Words, Top),
    [io:format("~4b ~s~n", [N, Word]) || {Word, N} <- Best],
    Report = #{words => lists:sum(maps:values(Total)), different => maps:size(Total),
               top => [[Word, N] || {Word, N} <- Best]},
    ok = file:write_file(os:getenv("JOB_OUTPUT_FILE"), json:encode(Report)).

count(Line) ->
    Words = re:split(string:lowercase(Line), "[^a-z']+", [trim]),
    lists:foldl(fun(Word, Sum) -> add(Sum, #{Word => 1}) end, #{}, [Word || Word <- Words, Word =/= <<>>]).

add(A, B) ->
    maps:merge_with(fun(_, N, M) -> N + M end, A, B).
