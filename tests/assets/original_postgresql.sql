-- The database of original.sql as create_all() makes it on PostgreSQL: VARCHAR, times without zone, JSON as text.
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
	created_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
	completed_at TIMESTAMP WITHOUT TIME ZONE,
	generation_time_seconds FLOAT,
	error_message TEXT,
	metadata TEXT,
	PRIMARY KEY (id)
);
CREATE TABLE prompts (
	id SERIAL NOT NULL,
	text TEXT NOT NULL,
	used_count INTEGER,
	first_used_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
	last_used_at TIMESTAMP WITHOUT TIME ZONE NOT NULL,
	PRIMARY KEY (id),
	UNIQUE (text)
);
INSERT INTO generations VALUES
	('good-pending','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/1.wav',NULL,'pending','2025-11-07 10:00:00',NULL,NULL,NULL,NULL),
	('good-processing','lo-fi "study" beat; with 100% rain','musicgen-small','1.0',8.5,44100,1,'outputs/2.wav',NULL,'processing','2025-11-07 10:00:01.25',NULL,NULL,NULL,'{"bpm": 80}'),
	('good-completed','trap beat 140 BPM','musicgen-medium','1.1',30.0,48000,2,'outputs/3.wav',5242880,'completed','2025-11-07 10:00:02','2025-11-07 10:00:20.5',18.5,NULL,'{"bpm": 140, "key": "Cm"}'),
	('good-failed','Ümläute, 日本語 und 🎵','musicgen-small',NULL,4.0,32000,1,'outputs/4.wav',NULL,'failed','2025-11-07 10:00:03','2025-11-07 10:00:04',NULL,'CUDA out of memory',NULL),
	('untimed-completed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/5.wav',1000,'completed','2025-11-07 10:00:05',NULL,NULL,NULL,NULL),
	('untimed-failed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/6.wav',NULL,'failed','2025-11-07 10:00:06',NULL,NULL,'boom',NULL),
	('bad-status','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/7.wav',NULL,'queued','2025-11-07 10:00:07',NULL,NULL,NULL,NULL),
	('bad-status-timed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/7.wav',NULL,'archived','2025-11-07 10:00:07','2025-11-07 10:00:08',NULL,NULL,NULL),
	('bad-pending-timed','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/8.wav',NULL,'pending','2025-11-07 10:00:08','2025-11-07 10:00:09',NULL,NULL,NULL),
	('bad-metadata-cut','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09',NULL,NULL,NULL,'{"bpm": 14'),
	('bad-metadata-nan','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09',NULL,NULL,NULL,'{"bpm": NaN}'),
	('bad-metadata-nul','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09',NULL,NULL,NULL,'{"key": "\u0000"}'),
	('bad-metadata-list','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09',NULL,NULL,NULL,'[1, 2]'),
	('bad-metadata-empty','trap beat 140 BPM','musicgen-small',NULL,16.0,32000,2,'outputs/9.wav',NULL,'pending','2025-11-07 10:00:09',NULL,NULL,NULL,''),
	('bad-numbers-negative','trap beat 140 BPM','musicgen-small',NULL,-1.0,0,3,'outputs/11.wav',-5,'completed','2025-11-07 10:00:11','2025-11-07 10:00:12',-0.5,NULL,NULL),
	('bad-numbers-infinite','trap beat 140 BPM','musicgen-small',NULL,'Infinity',32000,2,'outputs/12.wav',NULL,'pending','2025-11-07 10:00:12',NULL,'NaN',NULL,NULL),
	('bad-blank','','',NULL,16.0,32000,2,'',NULL,'failed','2025-11-07 10:00:16','2025-11-07 10:00:17',NULL,'',NULL),
	('','the id is empty','musicgen-small',NULL,16.0,32000,2,'outputs/18.wav',NULL,'pending','2025-11-07 10:00:18',NULL,NULL,NULL,NULL),
	('orphan-1','a prompt nobody counted','musicgen-small',NULL,16.0,32000,2,'outputs/19.wav',NULL,'pending','2025-11-07 10:00:19',NULL,NULL,NULL,NULL),
	('orphan-2','a prompt nobody counted','musicgen-small',NULL,16.0,32000,2,'outputs/20.wav',NULL,'pending','2025-11-07 10:00:20',NULL,NULL,NULL,NULL);
INSERT INTO prompts (text, used_count, first_used_at, last_used_at) VALUES
	('trap beat 140 BPM',2,'2025-11-07 10:00:00','2025-11-07 10:00:02'),
	('lo-fi "study" beat; with 100% rain',1,'2025-11-07 10:00:01.25','2025-11-07 10:00:01.25'),
	('Ümläute, 日本語 und 🎵',1,'2025-11-07 10:00:03','2025-11-07 10:00:03'),
	('a prompt whose generations were deleted',5,'2025-11-01 09:00:00','2025-11-02 09:00:00'),
	('counted to nothing',0,'2025-11-01 09:00:00','2025-11-02 09:00:00');
CREATE INDEX idx_generations_status ON generations (status);
CREATE INDEX idx_generations_created_at ON generations (created_at DESC);
CREATE INDEX idx_prompts_text ON prompts (text);
