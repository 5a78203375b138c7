# Reads a list of jobs from standard input and prints the list of results; support/producers.ts says what a job is.
use strict;
use warnings;
use Encode qw(decode);
use Crypt::JWT qw(decode_jwt encode_jwt);
use JSON qw(decode_json encode_json);

sub perform {
    my ($job) = @_;
    if ($job->{open}) {
        return decode('UTF-8', decode_jwt(token => $job->{open}, key => $job->{key}, decode_payload => 0));
    }
    my $content = $job->{claims};
    if (my $sign = $job->{sign}) {
        my $alg = delete $sign->{header}{alg};
        $content = encode_jwt(payload => $content, alg => $alg, key => $sign->{key}, extra_headers => $sign->{header});
    }
    my %header = %{ $job->{header} };
    my %named = (alg => delete $header{alg}, enc => delete $header{enc});
    $named{zip} = 'deflate' if delete $header{zip};
    return encode_jwt(payload => $content, key => $job->{key}, %named, extra_headers => \%header);
}

local $/;
my $jobs = decode_json(<STDIN>);
print JSON->new->allow_nonref->ascii->encode([map { perform($_) } @$jobs]);
