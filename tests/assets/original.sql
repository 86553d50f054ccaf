-- A small SQLite database of the first implementation: made by create_all(), without alembic_version, other column
-- types, an index missing, and rows of every kind that its code could leave behind.
BEGIN;
CREATE TABLE generations (
	id VARCHAR(36) NOT NULL,
	prompt TEXT NOT NULL,
	model_name VARCHAR(100) NOT NULL,
	model_version VARCHAR(50),
	duration_seconds FLOAT NOT NULL,
	sample_rate INTEGER NOT NULL,
	channels INTEGER NOT NULL,
	file_path VARCHAR(500) NOT NULL,
	file_size_bytes INTEGER,
	status VARCHAR(20) NOT NULL,
	created_at DATETIME NOT NULL,
	completed_at DATETIME,
	generation_time_seconds FLOAT,
	error_message TEXT,
	metadata TEXT,
	PRIMARY KEY (id)
);
CREATE TABLE prompts (
	id INTEGER NOT NULL,
	text TEXT NOT NULL,
	used_count INTEGER NOT NULL,
	first_used_at DATETIME NOT NULL,
	last_used_at DATETIME NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (text)
);
-- every status, as it should be
INSERT INTO generations VALUES
	('good-pending','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/1.wav',NULL,'pending','2025-11-07 10:00:00.000000',NULL,NULL,NULL,NULL),
	('good-processing','lo-fi "study" beat; with 100% rain','musicgen-small','1.0',8.5,44100,1,'outputs/2.wav',NULL,'processing','2025-11-07 10:00:01.250000',NULL,NULL,NULL,'{"bpm": 80}'),
	('good-completed','trap beat 140 BPM','musicgen-medium','1.1',30.0,48000,2,'outputs/3.wav',5242880,'completed','2025-11-07 10:00:02.000000','2025-11-07 10:00:20.500000',18.5,NULL,'{"bpm": 140, "key": "Cm"}'),
	('good-failed','Ümläute, 日本語 und 🎵','musicgen-small',NULL,4.0,32000,1,'outputs/4.wav',NULL,'failed','2025-11-07 10:00:03.000000','2025-11-07 10:00:04.000000',NULL,'CUDA out of memory',NULL);
-- finished without completed_at
INSERT INTO generations VALUES
	('untimed-completed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/5.wav',1000,'completed','2025-11-07 10:00:05.000000',NULL,NULL,NULL,NULL),
	('untimed-failed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/6.wav',NULL,'failed','2025-11-07 10:00:06.000000',NULL,NULL,'boom',NULL);
-- what no constraint of ours would let in
INSERT INTO generations VALUES
	('bad-status','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/7.wav',NULL,'queued','2025-11-07 10:00:07.000000',NULL,NULL,NULL,NULL),
	('bad-status-timed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/7.wav',NULL,'archived','2025-11-07 10:00:07.000000','2025-11-07 10:00:08.000000',NULL,NULL,NULL),
	('bad-status-empty','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/7.wav',NULL,'','2025-11-07 10:00:07.000000',NULL,NULL,NULL,NULL),
	('bad-pending-timed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/8.wav',NULL,'pending','2025-11-07 10:00:08.000000','2025-11-07 10:00:09.000000',NULL,NULL,NULL),
	('bad-metadata-cut','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09.000000',NULL,NULL,NULL,'{"bpm": 14'),
	('bad-metadata-nan','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09.000000',NULL,NULL,NULL,'{"bpm": NaN}'),
	('bad-metadata-list','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09.000000',NULL,NULL,NULL,'[1, 2]'),
	('bad-metadata-empty','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09.000000',NULL,NULL,NULL,''),
	('bad-numbers-text','trap beat 140 BPM','musicgen-small',NULL,'long','fast','stereo','outputs/10.wav','big','pending','2025-11-07 10:00:10.000000',NULL,'quick',NULL,NULL),
	('bad-numbers-negative','trap beat 140 BPM','musicgen-small',NULL,-1.0,0,3,'outputs/11.wav',-5,'completed','2025-11-07 10:00:11.000000','2025-11-07 10:00:12.000000',-0.5,NULL,NULL),
	('bad-numbers-infinite','trap beat 140 BPM','musicgen-small',NULL,9e999,32000,2,'outputs/12.wav',NULL,'pending','2025-11-07 10:00:12.000000',NULL,-9e999,NULL,NULL),
	('bad-channels-fraction','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,1.5,'outputs/13.wav',NULL,'pending','2025-11-07 10:00:13.000000',NULL,NULL,NULL,NULL),
	('bad-time','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/14.wav',NULL,'completed','yesterday','soon',1.0,NULL,NULL),
	('bad-time-number','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/14.wav',NULL,'pending',1762509600,NULL,NULL,NULL,NULL),
	('time-with-zone','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/14.wav',NULL,'completed','2025-11-07T10:00:00+05:00','2025-11-07T05:00:09Z',1.0,NULL,NULL),
	('bad-blob',x'00ff','musicgen-small',x'',16.0,32000,2,x'2f746d70',NULL,'pending','2025-11-07 10:00:15.000000',NULL,NULL,x'80',x'7b7d'),
	('bad-blank','','',NULL,16.0,32000,2,'',NULL,'failed','2025-11-07 10:00:16.000000','2025-11-07 10:00:17.000000',NULL,'',NULL),
	('','the id is empty','musicgen-small',NULL,16.0,32000,2,'outputs/18.wav',NULL,'pending','2025-11-07 10:00:18.000000',NULL,NULL,NULL,NULL);
-- a prompt that was never counted
INSERT INTO generations VALUES
	('orphan-1','a prompt nobody counted','musicgen-small',NULL,16.0,32000,2,'outputs/19.wav',NULL,'pending','2025-11-07 10:00:19.000000',NULL,NULL,NULL,NULL),
	('orphan-2','a prompt nobody counted','musicgen-small',NULL,16.0,32000,2,'outputs/20.wav',NULL,'pending','2025-11-07 10:00:20.000000',NULL,NULL,NULL,NULL);
INSERT INTO prompts VALUES
	(1,'trap beat 140 BPM',2,'2025-11-07 10:00:00.000000','2025-11-07 10:00:02.000000'),
	(2,'lo-fi "study" beat; with 100% rain',1,'2025-11-07 10:00:01.250000','2025-11-07 10:00:01.250000'),
	(3,'Ümläute, 日本語 und 🎵',1,'2025-11-07 10:00:03.000000','2025-11-07 10:00:03.000000'),
	(7,'a prompt whose generations were deleted',5,'2025-11-01 09:00:00.000000','2025-11-02 09:00:00.000000'),
	(8,'counted to nothing',0,'2025-11-01 09:00:00.000000','2025-11-02 09:00:00.000000'),
	(9,'counted in words','twice','2025-11-01 09:00:00.000000','2025-11-02 09:00:00.000000');
CREATE INDEX idx_generations_status ON generations (status);
CREATE INDEX idx_generations_created_at ON generations (created_at DESC);
CREATE INDEX idx_generations_model_name ON generations (model_name);
CREATE INDEX idx_prompts_text ON prompts (text);
COMMIT;
